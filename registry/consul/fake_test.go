package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/registry"
	"github.com/hashicorp/consul/api"
)

// fake answers like an agent that is told what to say. It serves what a real server cannot be made to do: the shape
// of requests, indexes that go backwards, answers that carry secrets, denials at the right moment.
type fake struct {
	addr string

	mu    sync.Mutex
	calls []*fakeCall
}

type fakeCall struct {
	method, path string
	query        url.Values
	header       http.Header
	body         []byte
	ctx          context.Context
	reply        http.Header
}

// start serves answer until the end of the test.
func (f *fake) start(t *testing.T, answer func(*fakeCall) (int, string)) {
	t.Helper()
	s := httptest.NewServer(f.handler(answer))
	t.Cleanup(s.Close)
	f.addr = strings.TrimPrefix(s.URL, "http://")
}

func (f *fake) handler(answer func(*fakeCall) (int, string)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body) // short of a broken client there is no error here
		c := &fakeCall{req.Method, req.URL.Path, req.URL.Query(), req.Header, body, req.Context(), w.Header()}
		f.mu.Lock()
		f.calls = append(f.calls, c)
		f.mu.Unlock()
		code, text := answer(c)
		w.WriteHeader(code)
		_, _ = io.WriteString(w, text)
	})
}

func (f *fake) last(t *testing.T) *fakeCall {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.calls) == 0 {
		t.Fatal("nothing was asked")
	}
	return f.calls[len(f.calls)-1]
}

func entriesJSON(n int) string {
	entries := make([]*api.ServiceEntry, 0, n)
	for i := range n {
		entries = append(entries, &api.ServiceEntry{Node: &api.Node{Node: "n"},
			Service: &api.AgentService{ID: fmt.Sprint("i", i), Service: "orders", Address: "h", Port: i + 1}})
	}
	b, err := json.Marshal(entries)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// TestRequests checks what is sent for each setting.
func TestRequests(t *testing.T) {
	t.Parallel()
	var f fake
	var agent sync.Map // path of a record -> it
	f.start(t, func(c *fakeCall) (int, string) {
		if c.path == "/v1/agent/service/register" {
			agent.Store("reg", string(c.body))
		}
		return 500, "enough"
	})
	for _, c := range []struct {
		cfg  Config
		want string // in the query of a watch
	}{
		{Config{}, "near=_agent&passing=1"},
		{Config{Datacenter: "dc2", Namespace: "team"}, "dc=dc2&near=_agent&ns=team&passing=1"},
		{Config{Consistency: ConsistencyStale}, "near=_agent&passing=1&stale="},
		{Config{Consistency: ConsistencyStrong}, "consistent=&near=_agent&passing=1"},
		{Config{WatchTags: []string{"a=b", "c"}}, "near=_agent&passing=1&tag=a%3Db&tag=c"},
	} {
		c.cfg.Address = f.addr
		c.cfg.Token = testToken
		r := newRegistry(t, c.cfg)
		_ = r.Watch(context.Background(), "orders", nil) // the answer is an error
		got := f.last(t)
		if got.query.Encode() != c.want || got.path != "/v1/health/service/orders" || got.header.Get("X-Consul-Token") != testToken {
			t.Errorf("%v: asked %s?%s, want %s and the token", c.cfg, got.path, got.query.Encode(), c.want)
		}
	}

	r := newRegistry(t, Config{Address: f.addr, Namespace: "team", Datacenter: "dc2", Token: testToken,
		Check: Check{Kind: CheckGRPC, Interval: 3 * time.Second, Timeout: time.Second, GRPCService: "orders", TLS: true,
			TLSServerName: "orders.example", TLSSkipVerify: true, DeregisterCriticalServiceAfter: 90 * time.Second}})
	register(t, r, "orders", registry.Instance{ID: "a", Addr: "[::1]:80"})
	body, _ := agent.Load("reg")
	var reg api.AgentServiceRegistration
	if err := json.Unmarshal([]byte(fmt.Sprint(body)), &reg); err != nil {
		t.Fatal(err)
	}
	want := api.AgentServiceCheck{CheckID: "service:orders:a", Name: "evenkeel grpc", Status: "passing", Interval: "3s", Timeout: "1s",
		GRPC: "[::1]:80/orders", GRPCUseTLS: true, TLSServerName: "orders.example", TLSSkipVerify: true, DeregisterCriticalServiceAfter: "1m30s"}
	if fmt.Sprintf("%+v", *reg.Check) != fmt.Sprintf("%+v", want) {
		t.Errorf("the check is %+v, want %+v", *reg.Check, want)
	}
}

// TestIndexGoesBackwards restores the servers from a backup under an open watch.
func TestIndexGoesBackwards(t *testing.T) {
	t.Parallel()
	var f fake
	answers := []struct {
		index, count int
	}{{900, 3}, {900, 3}, {901, 2}, {17, 1}, {17, 1}, {18, 0}}
	n := 0
	f.start(t, func(c *fakeCall) (int, string) { // one watch asks one after the other
		if n == len(answers) {
			<-c.ctx.Done()
			return 500, ""
		}
		a := answers[n]
		n++
		c.reply.Set("X-Consul-Index", fmt.Sprint(a.index))
		return 200, entriesJSON(a.count)
	})
	r := newRegistry(t, Config{Address: f.addr})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var got []int
	err := r.Watch(ctx, "orders", func(ins []registry.Instance) {
		if got = append(got, len(ins)); len(ins) == 0 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || fmt.Sprint(got) != "[3 2 1 0]" {
		t.Errorf("Watch = %v after updates of %v instances, want 3 2 1 0", err, got)
	}
	var asked []string
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		asked = append(asked, c.query.Get("index"))
		if wait, err := time.ParseDuration(c.query.Get("wait")); c.query.Get("index") != "" &&
			(err != nil || wait < 27*time.Second || wait > 30*time.Second) {
			t.Errorf("wait = %q, want 30 s less at most a tenth", c.query.Get("wait"))
		}
	}
	if want := "[ 900 900 901  17]"; fmt.Sprint(asked[:6]) != want {
		t.Errorf("asked with the indexes %q, want %s", asked[:6], want)
	}
}

// TestNewConnectionStartsOver loses the connection between two queries: an index is not taken along to whoever
// answers now.
func TestNewConnectionStartsOver(t *testing.T) {
	t.Parallel()
	var f fake
	n := 0
	done := make(chan struct{})
	f.start(t, func(c *fakeCall) (int, string) {
		n++
		c.reply.Set("X-Consul-Index", fmt.Sprint(100+n))
		if n == 2 {
			c.reply.Set("Connection", "close")
		}
		if n == 4 {
			close(done)
		}
		return 200, entriesJSON(n)
	})
	r := newRegistry(t, Config{Address: f.addr})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		<-done
		cancel()
	}()
	if err := r.Watch(ctx, "orders", func([]registry.Instance) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("Watch = %v", err)
	}
	var asked []string
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		asked = append(asked, c.query.Get("index"))
	}
	// The query that was given up may have reached the server, or not.
	if asked[2] != "" && (asked[2] != "102" || len(asked) < 4 || asked[3] != "") {
		t.Errorf("asked with the indexes %q, want the third query, or the fourth, to start over", asked)
	}
}

// TestUnixSocket watches through a client that has a new connection for every query.
func TestUnixSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Skipf("no unix sockets here: %v", err)
	}
	var f fake
	n := 0
	s := &http.Server{Handler: f.handler(func(c *fakeCall) (int, string) {
		n++
		c.reply.Set("X-Consul-Index", fmt.Sprint(100+n))
		return 200, entriesJSON(n)
	})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) })
	defer wg.Wait()
	defer func() { _ = s.Close() }()
	r := newRegistry(t, Config{Address: "unix://" + path})
	ctx, cancel := context.WithCancel(background(t))
	updates := 0
	err = r.Watch(ctx, "orders", func([]registry.Instance) {
		if updates++; updates == 6 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || !strings.Contains(r.String(), "unix://"+path) {
		t.Errorf("%v: Watch = %v after %d updates", r, err, updates)
	}
	indexed := 0
	for _, c := range f.calls {
		if c.query.Get("index") != "" {
			indexed++
		}
	}
	if indexed < 2 {
		t.Errorf("%d of %d queries had an index: the watch does nothing but poll", indexed, len(f.calls))
	}
}

// TestEmptyIsNotAlwaysTrue serves empty answers that say that they are not the whole truth.
func TestEmptyIsNotAlwaysTrue(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what        string
		header      map[string]string
		consistency Consistency
		count       int
		wantErr     string
	}{
		{"a leader is known", map[string]string{"X-Consul-KnownLeader": "true"}, ConsistencyStale, 0, ""},
		{"no leader, stale", map[string]string{"X-Consul-KnownLeader": "false"}, ConsistencyStale, 0, "leader"},
		{"no leader, stale, but instances", map[string]string{"X-Consul-KnownLeader": "false"}, ConsistencyStale, 1, ""},
		{"the streaming backend never says", map[string]string{"X-Consul-KnownLeader": "false",
			"X-Consul-Query-Backend": "streaming"}, ConsistencyStale, 0, ""},
		{"the leader itself", map[string]string{"X-Consul-KnownLeader": "false"}, ConsistencyDefault, 0, ""},
		{"filtered by ACLs", map[string]string{"X-Consul-Results-Filtered-By-ACLs": "true"}, ConsistencyDefault, 0, "service:read"},
	} {
		var f fake
		f.start(t, func(call *fakeCall) (int, string) {
			for k, v := range c.header {
				call.reply.Set(k, v)
			}
			call.reply.Set("X-Consul-Index", "5")
			call.reply.Set("X-Consul-LastContact", "0") // the client reads nothing that follows a header it misses
			return 200, entriesJSON(c.count)
		})
		r := newRegistry(t, Config{Address: f.addr, Consistency: c.consistency})
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		updates := 0
		err := r.Watch(ctx, "orders", func([]registry.Instance) { updates++; cancel() })
		cancel()
		if c.wantErr == "" && (updates != 1 || !errors.Is(err, context.Canceled)) ||
			c.wantErr != "" && (updates != 0 || err == nil || !strings.Contains(err.Error(), c.wantErr)) {
			t.Errorf("%s: %d updates, then %v", c.what, updates, err)
		}
	}
}

// TestAnswersThatShowTheToken has a proxy send back what it got, and somebody redirect elsewhere.
func TestAnswersThatShowTheToken(t *testing.T) {
	t.Parallel()
	var thief, f fake
	thief.start(t, func(*fakeCall) (int, string) { return 200, "[]" })
	redirect := false
	f.start(t, func(c *fakeCall) (int, string) {
		if redirect {
			c.reply.Set("Location", "http://"+thief.addr+"/v1/x")
			return 307, ""
		}
		return 502, fmt.Sprintf("you sent %v and %q", c.header, url.QueryEscape(c.header.Get("X-Consul-Token")))
	})
	var log logs
	r := newRegistry(t, Config{Address: f.addr, Token: testToken, Logger: log.logger()})
	said := fmt.Sprint(r.Watch(background(t), "orders", nil))
	g := register(t, r, "orders", registry.Instance{ID: "a", Addr: "h:1"})
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	said += fmt.Sprint(g.Close(ctx)) + log.String()
	if strings.Contains(said, testToken) || strings.Count(said, "(not shown)") < 3 {
		t.Errorf("the token is shown, or the answer is not:\n%s", said)
	}
	redirect = true
	if err := r.Watch(background(t), "orders", func([]registry.Instance) { t.Error("an update by redirection") }); err == nil {
		t.Error("Watch follows a redirection, and takes the token there")
	}
	if len(thief.calls) != 0 {
		t.Errorf("the redirection was followed with %v", thief.calls[0].header)
	}
}

// TestRefusedByConsul has an agent refuse what encode lets through, as a newer one may.
func TestRefusedByConsul(t *testing.T) {
	t.Parallel()
	var f fake
	var mu sync.Mutex
	var have *api.AgentService
	beats := 0
	f.start(t, func(c *fakeCall) (int, string) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case c.path == "/v1/agent/service/register":
			var reg api.AgentServiceRegistration
			if err := json.Unmarshal(c.body, &reg); err != nil || reg.Meta["version"] == "bad" {
				return 400, "Invalid Service Meta"
			}
			have = stored(&reg, "n", 1).Service
		case have == nil:
			return 404, "unknown"
		case strings.HasPrefix(c.path, "/v1/agent/check/update/"):
			beats++
		case strings.HasPrefix(c.path, "/v1/agent/service/orders"):
			b, err := json.Marshal(have)
			if err != nil {
				return 500, err.Error()
			}
			return 200, string(b)
		}
		return 200, ""
	})
	r := newRegistry(t, Config{Address: f.addr, Check: Check{TTL: time.Second, Interval: 20 * time.Millisecond}})
	bad := registry.Instance{ID: "a", Addr: "h:1", Version: "bad"}
	if g, err := r.Register(background(t), "orders", bad); !errors.Is(err, registry.ErrInvalid) || g != nil {
		t.Fatalf("Register = %v, %v, want an error that wraps ErrInvalid", g, err)
	}
	good := registry.Instance{ID: "a", Addr: "h:1", Version: "1"}
	g := register(t, r, "orders", good)
	if err := g.Update(background(t), bad); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("Update = %v, want an error that wraps ErrInvalid", err)
	}
	mu.Lock()
	had := beats
	mu.Unlock()
	eventually(t, "the record that was accepted lives on", 10*time.Second, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return beats > had+3 && have.Meta["version"] == "1"
	})
	good.Version = "2"
	if err := g.Update(background(t), good); err != nil {
		t.Errorf("the next Update = %v, want nil", err)
	}
}

// TestHanging asks an agent that never answers, and gives up at once when told to.
func TestHanging(t *testing.T) {
	t.Parallel()
	var f fake
	f.start(t, func(c *fakeCall) (int, string) { <-c.ctx.Done(); return 500, "" })
	r := newRegistry(t, Config{Address: f.addr})
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := r.Watch(ctx, "orders", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Watch = %v, want the context's error", err)
	}
	g, err := r.Register(ctx, "orders", registry.Instance{ID: "a", Addr: "h:1"})
	if err != nil {
		t.Fatalf("Register = %v, want nil: nothing says that it cannot work", err)
	}
	if err := g.Close(ctx); err == nil {
		t.Error("Close = nil, want that it could not deregister")
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("it took %v to give up", took)
	}
	if err := g.Close(ctx); err != nil {
		t.Errorf("second Close = %v, want nil", err)
	}
}
