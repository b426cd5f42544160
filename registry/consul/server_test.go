package consul

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/internal/testconsul"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/hashicorp/consul/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// TestForeign registers what other tools register, and watches it.
func TestForeign(t *testing.T) {
	t.Parallel()
	s := sharedServer(t)
	var log logs
	r := newRegistry(t, Config{Address: s.Addr(), Logger: log.logger()})
	rec := follow(t, r, "foreign")
	rec.Await("an empty set", haveIDs())
	put(t, s, &api.AgentServiceRegistration{ID: "f1", Name: "foreign", Address: "2001:db8::1", Port: 80,
		Tags: []string{"track=canary", "http", "k=tag"}, Meta: map[string]string{"k": "meta", "version": "1.2.3", "zone": "z1"},
		Weights: &api.AgentWeights{Passing: 7, Warning: 1}})
	want := registry.Instance{ID: "f1", Addr: "[2001:db8::1]:80", Version: "1.2.3", Zone: "z1", Weight: 7,
		Labels: map[string]string{"track": "canary", "http": "", "k": "meta"}}
	rec.Await("the foreign record", func(ins []registry.Instance) bool { return len(ins) == 1 && ins[0].Equal(want) })

	// Neither an address nor an ID of its own: the node's, and the service's name.
	put(t, s, &api.AgentServiceRegistration{Name: "foreign", Port: 81})
	rec.Await("a record with the node's address", func(ins []registry.Instance) bool {
		return len(ins) == 2 && ins[1].ID == "foreign" && ins[1].Addr == "127.0.0.1:81"
	})
	put(t, s, &api.AgentServiceRegistration{ID: "bad", Name: "foreign"}) // no port
	put(t, s, &api.AgentServiceRegistration{ID: "f3", Name: "foreign", Address: "h", Port: 83})
	rec.Await("the others, without the bad one", haveIDs("f1", "foreign", "f3"))
	put(t, s, &api.AgentServiceRegistration{ID: "bad", Name: "foreign", Address: "h", Port: 84})
	rec.Await("the bad one made good", haveIDs("f1", "foreign", "bad", "f3"))
	if n := strings.Count(log.String(), "a record is left out"); n != 1 || !strings.Contains(log.String(), `"bad on test"`) {
		t.Errorf("the bad record was logged %d times, want once, with its name:\n%s", n, log.String())
	}
	if n := strings.Count(log.String(), "well or gone"); n != 1 {
		t.Errorf("that it is well was logged %d times, want once:\n%s", n, log.String())
	}
}

func TestWatchTags(t *testing.T) {
	t.Parallel()
	s := sharedServer(t)
	all := newRegistry(t, Config{Address: s.Addr()})
	some := newRegistry(t, Config{Address: s.Addr(), WatchTags: []string{"env=prod", "http"}, Consistency: ConsistencyStale})
	for i, tags := range [][]string{{"env=prod", "http"}, {"env=prod"}, {"http"}, nil, {"x", "http", "env=prod"}} {
		own := newRegistry(t, Config{Address: s.Addr(), Tags: tags})
		register(t, own, "tagged", registry.Instance{ID: fmt.Sprint(i), Addr: fmt.Sprint("h:", i+1)})
	}
	follow(t, all, "tagged").Await("every record", haveIDs("0", "1", "2", "3", "4"))
	follow(t, some, "tagged").Await("those with both tags", haveIDs("0", "4"))
}

// TestOddNames takes names that HTTP servers tidy up through a record's whole life.
func TestOddNames(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, Config{Address: sharedServer(t).Addr(), Consistency: ConsistencyStrong,
		Check: Check{TTL: 2 * time.Second, Interval: time.Second}})
	for _, service := range []string{"odd.name_1", "odd?a=b#c%2F", "ödd", "Odd"} {
		rec := follow(t, r, service)
		var open []registry.Registration
		var want []string
		for i, id := range []string{"a/../b", "a//b", "..", "%2F", "a b", "日本", "x:y", "?q#f", "a\x00b"} {
			g := register(t, r, service, registry.Instance{ID: id, Addr: fmt.Sprint("h:", i+1)})
			open, want = append(open, g), append(want, id)
			rec.Await("the ID "+strconv.Quote(id), haveIDs(want...))
		}
		for _, g := range open {
			if err := g.Close(background(t)); err != nil {
				t.Error(err)
			}
		}
		rec.Await("nothing", haveIDs())
	}
}

// TestMost stores the most that is allowed: what encode lets through, the server takes.
func TestMost(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, Config{Address: sharedServer(t).Addr()})
	in := registry.Instance{ID: strings.Repeat("i", 255), Addr: "h:1", Version: strings.Repeat("v", 512),
		Zone: strings.Repeat("ä", 256), Weight: 65535, Labels: map[string]string{}}
	for i := range 62 {
		in.Labels[fmt.Sprintf("%064d", i)] = strings.Repeat("\x00", 512)
	}
	service := strings.Repeat("s", 255)
	register(t, r, service, in)
	follow(t, r, service).Await("it all", func(ins []registry.Instance) bool { return len(ins) == 1 && ins[0].Equal(in) })
}

// TestOnlyPassing lets somebody take an instance out by Consul's own means.
func TestOnlyPassing(t *testing.T) {
	t.Parallel()
	s := sharedServer(t)
	agent := s.Client().Agent()
	r := newRegistry(t, Config{Address: s.Addr(), Check: Check{TTL: 2 * time.Second, Interval: time.Second}})
	in := registry.Instance{ID: "a", Addr: "h:1"}
	g := register(t, r, "passing", in)
	rec := follow(t, r, "passing")
	rec.Await("it", haveIDs("a"))
	if err := agent.EnableServiceMaintenance("passing:a", "a test"); err != nil {
		t.Fatal(err)
	}
	rec.Await("nothing in maintenance", haveIDs())
	in.Version = "2"
	if err := g.Update(background(t), in); err != nil {
		t.Fatal(err)
	}
	_, info, err := agent.AgentHealthServiceByID("passing:a")
	if err != nil || info.AggregatedStatus != api.HealthMaint || info.Service.Meta["version"] != "2" {
		t.Errorf("after an update: %+v, %v, want version 2 in maintenance", info, err)
	}
	if err := agent.DisableServiceMaintenance("passing:a"); err != nil {
		t.Fatal(err)
	}
	rec.Await("it again", haveIDs("a"))

	put(t, s, &api.AgentServiceRegistration{ID: "warning", Name: "passing", Address: "h", Port: 2,
		Check: &api.AgentServiceCheck{TTL: "1h", Status: api.HealthWarning}})
	put(t, s, &api.AgentServiceRegistration{ID: "passing", Name: "passing", Address: "h", Port: 3})
	rec.Await("the passing ones", haveIDs("a", "passing"))
}

// TestUpdateWithoutGap updates a record many times under each kind of check, and reads the catalog all the while.
func TestUpdateWithoutGap(t *testing.T) {
	t.Parallel()
	s := sharedServer(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for _, kind := range []CheckKind{CheckTTL, CheckTCP} {
		service := "gap-" + kind.String()
		r := newRegistry(t, Config{Address: s.Addr(), Check: Check{Kind: kind}})
		in := registry.Instance{ID: "a", Addr: l.Addr().String(), Labels: map[string]string{"n": "0"}}
		g := register(t, r, service, in)
		rec := follow(t, r, service)
		rec.Await("it", haveIDs("a"))
		ctx, stop := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		reads := 0
		wg.Go(func() {
			for ctx.Err() == nil {
				found, _, err := s.Client().Health().Service(service, "", true, nil)
				if err != nil || len(found) != 1 {
					t.Errorf("%v: during an update: %d records, %v, want 1", kind, len(found), err)
				}
				reads++
			}
		})
		for i := range 100 {
			in.Labels = map[string]string{"n": fmt.Sprint(i)}
			if err := g.Update(background(t), in); err != nil {
				t.Fatal(err)
			}
		}
		rec.Await("the last", func(ins []registry.Instance) bool { return len(ins) == 1 && ins[0].Equal(in) })
		stop()
		wg.Wait()
		if reads < 50 {
			t.Errorf("%v: only %d reads in 100 updates", kind, reads)
		}
		updates := rec.Updates()
		for i, ins := range updates[slices.IndexFunc(updates, haveIDs("a")):] {
			if len(ins) != 1 {
				t.Errorf("%v: update %d has %d instances", kind, i, len(ins))
			}
		}
	}
}

// TestPutBack has somebody delete and change records, with and without beats.
func TestPutBack(t *testing.T) {
	t.Parallel()
	s := sharedServer(t)
	agent := s.Client().Agent()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for _, kind := range []CheckKind{CheckTTL, CheckTCP} {
		service := "back-" + kind.String()
		var log logs
		r := newRegistry(t, Config{Address: s.Addr(), Logger: log.logger(),
			Check: Check{Kind: kind, TTL: 2 * time.Second, Interval: time.Second}})
		in := registry.Instance{ID: "a", Addr: l.Addr().String()}
		register(t, r, service, in)
		rec := follow(t, r, service)
		is := func(ins []registry.Instance) bool { return len(ins) == 1 && ins[0].Equal(in) }
		rec.Await("it", is)
		if err := agent.ServiceDeregister(service + ":a"); err != nil {
			t.Fatal(err)
		}
		rec.Await("nothing after it was deleted", haveIDs())
		rec.Await("it, put back", is)
		put(t, s, &api.AgentServiceRegistration{ID: service + ":a", Name: service, Address: "elsewhere", Port: 1})
		rec.Await("what somebody made of it", func(ins []registry.Instance) bool { return len(ins) == 1 && !ins[0].Equal(in) })
		rec.Await("it, put back", is)
		eventually(t, "the log says that it is well", 5*time.Second, func() bool {
			return strings.Contains(log.String(), "is written again") && strings.Contains(log.String(), "as it should be\"")
		})
	}
}

// TestTCPCheck lets the agent find out by itself that a server has gone.
func TestTCPCheck(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	r := newRegistry(t, Config{Address: sharedServer(t).Addr(),
		Check: Check{Kind: CheckTCP, Interval: time.Second, Timeout: 500 * time.Millisecond}})
	g := register(t, r, "tcp", registry.Instance{ID: "a", Addr: l.Addr().String()})
	rec := follow(t, r, "tcp")
	rec.Await("it", haveIDs("a"))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	rec.Await("nothing once nobody listens", haveIDs())
	if err := g.Close(background(t)); err != nil {
		t.Error(err)
	}
}

// TestGRPCCheck lets the agent ask a real gRPC health server.
func TestGRPCCheck(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv, hs := grpc.NewServer(), health.NewServer()
	healthpb.RegisterHealthServer(srv, hs)
	hs.SetServingStatus("orders", healthpb.HealthCheckResponse_SERVING)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	defer wg.Wait()
	defer srv.Stop()
	r := newRegistry(t, Config{Address: sharedServer(t).Addr(),
		Check: Check{Kind: CheckGRPC, Interval: time.Second, GRPCService: "orders"}})
	register(t, r, "grpc", registry.Instance{ID: "a", Addr: l.Addr().String()})
	rec := follow(t, r, "grpc")
	rec.Await("it", haveIDs("a"))
	hs.SetServingStatus("orders", healthpb.HealthCheckResponse_NOT_SERVING)
	rec.Await("nothing while it does not serve", haveIDs())
	hs.SetServingStatus("orders", healthpb.HealthCheckResponse_SERVING)
	rec.Await("it again", haveIDs("a"))
}

// TestKilledAndRestartedEmpty is the outage that the issue names, shortened: what must be is counted from the moment
// Consul answers again.
func TestKilledAndRestartedEmpty(t *testing.T) {
	t.Parallel()
	s := testconsul.Start(t)
	var log logs
	r := newRegistry(t, Config{Address: s.Addr(), Logger: log.logger()})
	for i := range 5 {
		register(t, r, "five", registry.Instance{ID: fmt.Sprint(i), Addr: fmt.Sprint("h:", i+1)})
	}
	follow(t, r, "five").Await("all", func(ins []registry.Instance) bool { return len(ins) == 5 })
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "every registration notices", 10*time.Second, func() bool {
		return strings.Count(log.String(), "cannot be kept alive") == 5
	})
	if err := s.StartAgain(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "five records are back", 10*time.Second, func() bool {
		found, _, err := s.Client().Health().Service("five", "", true, nil)
		return err == nil && len(found) == 5
	})
	eventually(t, "the log says so", 10*time.Second, func() bool { return strings.Count(log.String(), "as it should be\"") == 5 })
	if n := strings.Count(log.String(), "cannot be kept alive"); n != 5 {
		t.Errorf("five outages were logged %d times:\n%s", n, log.String())
	}
}

// TestFrozen freezes the server for longer than the TTL.
func TestFrozen(t *testing.T) {
	t.Parallel()
	s := testconsul.Start(t)
	r := newRegistry(t, Config{Address: s.Addr(), WaitTime: time.Second, Check: Check{TTL: 3 * time.Second, Interval: time.Second}})
	g := register(t, r, "frozen", registry.Instance{ID: "a", Addr: "h:1"})
	ended := make(chan error, 1)
	seen := make(chan []registry.Instance, 100)
	go func() {
		ended <- r.Watch(context.Background(), "frozen", func(ins []registry.Instance) { seen <- ins })
	}()
	for ins := range seen {
		if len(ins) == 1 {
			break
		}
	}
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "no answer within") {
			t.Errorf("Watch of a frozen Consul = %v, want that it does not answer", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Watch of a frozen Consul goes on for ever")
	}
	if len(seen) != 0 {
		t.Errorf("a frozen Consul gave an update: %v", <-seen)
	}
	// What can be asked of a registration while nobody answers.
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := g.Update(ctx, registry.Instance{ID: "a", Addr: "h:1", Version: "2"}); err != nil {
		t.Errorf("Update while frozen = %v, want nil", err)
	}
	if _, err := r.Register(ctx, "frozen", registry.Instance{ID: "b", Addr: "h:2"}); err != nil {
		t.Errorf("Register while frozen = %v, want nil", err)
	}
	if err := s.Continue(); err != nil {
		t.Fatal(err)
	}
	follow(t, r, "frozen").Await("both, as they were meant to be", func(ins []registry.Instance) bool {
		return len(ins) == 2 && ins[0].Version == "2"
	})
}

// TestDownAtStart registers and watches before there is a Consul.
func TestDownAtStart(t *testing.T) {
	t.Parallel()
	s := testconsul.Start(t)
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	var log logs
	r := newRegistry(t, Config{Address: s.Addr(), Logger: log.logger()})
	g := register(t, r, "early", registry.Instance{ID: "a", Addr: "h:1"})
	lost := register(t, r, "early", registry.Instance{ID: "lost", Addr: "h:2"})
	if err := r.Watch(background(t), "early", func(ins []registry.Instance) { t.Errorf("an update: %v", ins) }); err == nil {
		t.Error("Watch without Consul = nil, want why")
	}
	if err := g.Update(background(t), registry.Instance{ID: "a", Addr: "h:1", Zone: "z"}); err != nil {
		t.Errorf("Update without Consul = %v, want nil", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if err := lost.Close(ctx); err == nil || !strings.Contains(err.Error(), "deregister") {
		t.Errorf("Close without Consul = %v, want that it could not deregister", err)
	}
	if err := s.StartAgain(); err != nil {
		t.Fatal(err)
	}
	follow(t, r, "early").Await("the record that is left, updated", func(ins []registry.Instance) bool {
		return len(ins) == 1 && ins[0].Zone == "z"
	})
	if strings.Count(log.String(), "cannot be kept alive") != 2 {
		t.Errorf("want the outage logged once for each registration:\n%s", log.String())
	}
}

// TestRegistryClose closes a registry with everything still open.
func TestRegistryClose(t *testing.T) {
	t.Parallel()
	s := sharedServer(t)
	r := newRegistry(t, Config{Address: s.Addr()})
	g := register(t, r, "closing", registry.Instance{ID: "a", Addr: "h:1"})
	ended := make(chan error, 1)
	first := make(chan struct{}, 10)
	go func() {
		ended <- r.Watch(context.Background(), "closing", func([]registry.Instance) { first <- struct{}{} })
	}()
	<-first
	if err := r.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("Watch = %v, want ErrClosed", err)
	}
	found, _, err := s.Client().Catalog().Service("closing", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the record is gone", 5*time.Second, func() bool {
		found, _, err = s.Client().Catalog().Service("closing", "", nil)
		return err == nil && len(found) == 0
	})
	for what, err := range map[string]error{"second Close": r.Close(), "Registration.Close": g.Close(background(t))} {
		if err != nil {
			t.Errorf("%s = %v, want nil", what, err)
		}
	}
	if err := r.Watch(background(t), "closing", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Watch after Close = %v, want ErrClosed", err)
	}
	if _, err := r.Register(background(t), "closing", registry.Instance{ID: "a", Addr: "h:1"}); !errors.Is(err, ErrClosed) {
		t.Errorf("Register after Close = %v, want ErrClosed", err)
	}
	if err := g.Update(background(t), registry.Instance{ID: "a", Addr: "h:1"}); err == nil {
		t.Error("Update after Close = nil, want an error")
	}
}
