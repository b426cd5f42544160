package balancer

import (
	"fmt"
	"math"
	"testing"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/balancer/load"
	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/outcome"
)

// TestTriedIsAvoided: a retry gets another endpoint as long as there is one, whatever the strategy says.
func TestTriedIsAvoided(t *testing.T) {
	for _, s := range strategiesUnderTest {
		t.Run(s.Name(), func(t *testing.T) {
			r := newRig(t, Config{Strategy: s}, fleet(3))
			for range 200 {
				var tried callctx.Tried
				seen := make(map[string]bool)
				for range 3 {
					call := &callctx.Call{Kind: callctx.Unary, Tried: &tried}
					id := r.call(ask{ctx: with(t.Context(), call)})
					if seen[id] {
						t.Fatalf("%s was chosen again after %v", id, seen)
					}
					if call.Picked() == nil || call.Picked().ID != id || call.Picked().Addr == "" {
						t.Fatalf("Picked is %+v, want %s", call.Picked(), id)
					}
					seen[id] = true
					tried.Add(call.Picked())
				}
				r.call(ask{ctx: with(t.Context(), &callctx.Call{Tried: &tried})}) // all were tried: any will do
			}
		})
	}
}

// TestTriedAndBlacklisted: an endpoint that was tried is better than one that is out, one that is kept in is better
// than one that was tried, and the probing call is not a second attempt at the same endpoint.
func TestTriedAndBlacklisted(t *testing.T) {
	r := newRig(t, Config{}, fleet(2))
	r.sicken("i1", fails(codes.Unavailable))
	var tried callctx.Tried
	call := &callctx.Call{Tried: &tried}
	r.call(ask{ctx: with(t.Context(), call)})
	tried.Add(call.Picked())
	if id := r.call(ask{ctx: with(t.Context(), &callctx.Call{Tried: &tried})}); id != "i0" {
		t.Errorf("the second attempt went to %s, which is out, want i0 again", id)
	}

	r.serveOut("i1")
	if id := r.call(ask{ctx: with(t.Context(), &callctx.Call{Tried: &tried})}); id != "i1" {
		t.Errorf("the second attempt went to %s, want i1 to be probed", id)
	}
	r.serveOut("i1")
	tried.Add(endpoint(r, "i1").identity())
	if id := r.call(ask{ctx: with(t.Context(), &callctx.Call{Tried: &tried})}); id != "i0" {
		t.Errorf("the third attempt went to %s, which was tried and failed, to probe; want i0", id)
	}

	r = newRig(t, Config{}, fleet(4))
	for i := range 3 { // two may be out, so one of these is kept in
		r.sicken([]string{"i1", "i2", "i3"}[i], fails(codes.Unavailable))
	}
	tried = callctx.Tried{}
	tried.Add(endpoint(r, "i0").identity())
	id := r.call(ask{ctx: with(t.Context(), &callctx.Call{Tried: &tried})})
	if id == "i0" {
		t.Error("the second attempt went to i0 again, want the one that is kept in")
	}
	tried.Add(endpoint(r, id).identity())
	if id := r.call(ask{ctx: with(t.Context(), &callctx.Call{Tried: &tried})}); id != "i0" && !r.state(id).Ejected {
		t.Errorf("the third attempt went to %s", id)
	}
}

// endpoint is the endpoint of an instance that is known.
func endpoint(r *rig, id string) *Endpoint {
	r.t.Helper()
	for _, e := range r.p.known {
		if e.id.ID == id {
			return e
		}
	}
	r.t.Fatalf("instance %q is not known", id)
	return nil
}

func (e *Endpoint) identity() *callctx.Endpoint { return &e.id }

// TestDiscardedPick is no success, no failure and no sample, and is counted out.
func TestDiscardedPick(t *testing.T) {
	r := newRig(t, Config{Strategy: PeakEWMA{}}, fleet(2))
	for _, in := range fleet(2) {
		r.hold(in.ID)(gbalancer.DoneInfo{})
		e := endpoint(r, in.ID)
		if e.health() != 0 || e.ewma.Seen() || e.InFlight() != 0 || e.started.Load() != 1 {
			t.Errorf("%s: health %x, measured %t, %d in flight of %d, want nothing but 1 begun", in.ID, uint64(e.health()),
				e.ewma.Seen(), e.InFlight(), e.started.Load())
		}
	}
}

// TestFailureWithoutConnection: a call that failed before anything was sent, because the connection had gone, says
// nothing that the connection's state does not say.
func TestFailureWithoutConnection(t *testing.T) {
	for _, s := range []Strategy{RoundRobin{}, PeakEWMA{}} {
		r := newRig(t, Config{Strategy: s}, fleet(3))
		var under []func(gbalancer.DoneInfo)
		for range 5 {
			under = append(under, r.hold("i1"))
		}
		r.cc.Refuse = func(string) error { return errRefused }
		r.drop("10.0.0.2:80")
		for _, done := range under[:4] {
			done(gbalancer.DoneInfo{Err: fails(codes.Unavailable)})
		}
		if n := len(r.p.sick); n > 0 {
			t.Errorf("%s: an endpoint that lost its connection was ejected for it", s.Name())
		}
		under[4](ended(fails(codes.Unavailable)))
		if h := endpoint(r, "i1").health(); h.failed() != 1 {
			t.Errorf("%s: %d failures are on record, want that of the call that was sent", s.Name(), h.failed())
		}
	}
}

// TestLostEndpointIsNotPicked: the connection is gone, the picker is the old one.
func TestLostEndpointIsNotPicked(t *testing.T) {
	for _, s := range strategiesUnderTest {
		r := newRig(t, Config{Strategy: s}, fleet(3))
		r.flush()
		lose := func(i int) {
			r.cc.Conn(fleet(3)[i].Addr).Move(connectivity.Idle, nil)
			r.cc.Step()
		}
		lose(0)
		lose(1)
		old := r.cc.Picker()
		r.frozen = true
		for range 50 {
			if id := r.call(ask{}); id != "i2" {
				t.Fatalf("%s: picked %q, want i2, which has a connection", s.Name(), id)
			}
		}
		lose(2)
		if _, err := old.Pick(gbalancer.PickInfo{Ctx: t.Context()}); err != gbalancer.ErrNoSubConnAvailable {
			t.Fatalf("%s: an old picker without connections says %v, want that the call queues", s.Name(), err)
		}
		if _, err := old.Pick(gbalancer.PickInfo{Ctx: bind(t, "id=i1")}); err != gbalancer.ErrNoSubConnAvailable {
			t.Fatalf("%s: and for a filter it had not met %v, want that the call queues", s.Name(), err)
		}
		r.frozen = false
		r.flush()
		if got := r.calls(30, ask{}); len(got) != 3 && s.Name() != "peak_ewma" && s.Name() != "keel" {
			t.Fatalf("%s: after they reconnected calls go to %v", s.Name(), got)
		}
	}
}

// TestStrategyChangesUnderCalls: calls that began under one configuration end under another.
func TestStrategyChangesUnderCalls(t *testing.T) {
	r := newRig(t, Config{Strategy: PeakEWMA{}}, fleet(3))
	var under []func(gbalancer.DoneInfo)
	configs := []Config{
		{}, {Strategy: PeakEWMA{}}, {Blacklist: Blacklist{Disabled: true}}, {Strategy: LeastRequest{}},
		{Blacklist: Blacklist{Classifier: "test-strict"}}, {Strategy: PeakEWMA{}, Blacklist: Blacklist{Disabled: true}},
		{Strategy: Weighted{}, Blacklist: Blacklist{Failures: 1}},
	}
	for i := range 70 {
		r.update(configs[i%len(configs)], fleet(3))
		for range 3 {
			_, done, err := r.begin(ask{ctx: r.deadline(time.Second)})
			if err != nil {
				t.Fatal(err)
			}
			under = append(under, done)
			_, done, err = r.begin(ask{})
			if err != nil {
				t.Fatal(err)
			}
			under = append(under, done)
		}
		r.advance(time.Millisecond)
		for i, done := range under[:len(under)/2] {
			if i%5 == 0 {
				done(ended(fails(codes.Unavailable)))
			} else {
				done(ended(nil))
			}
		}
		under = under[len(under)/2:]
	}
	for _, done := range under {
		done(ended(nil))
	}
}

// TestClassifier: a named one decides, is told the method and the time that was left, and is not asked about success.
func TestClassifier(t *testing.T) {
	asked = nil
	r := newRig(t, Config{Blacklist: Blacklist{Classifier: "test-strict"}}, fleet(3))
	r.answers["i1"] = fails(codes.NotFound)
	for range 9 {
		r.call(ask{ctx: r.deadline(time.Second), method: "/a/b"})
	}
	r.hold("i2")(ended(fails(codes.NotFound)))
	if !r.state("i1").Ejected {
		t.Error("three NOT_FOUND did not eject, though the classifier calls them failures")
	}
	want := []question{{"/a/b", time.Second}, {"/a/b", time.Second}, {"/a/b", time.Second}, {"/orders.Orders/Get", 1<<63 - 1}}
	if len(asked) != len(want) {
		t.Fatalf("asked %v, want %v", asked, want)
	}
	for i := range want {
		if asked[i] != want[i] {
			t.Errorf("asked %v, want %v", asked, want)
		}
	}
}

// TestShortDeadlineIsNoPenalty: peak_ewma does not blame an endpoint for a caller without patience, whether the
// blacklist is on or off.
func TestShortDeadlineIsNoPenalty(t *testing.T) {
	for _, disabled := range []bool{false, true} {
		r := newRig(t, Config{Strategy: PeakEWMA{}, Blacklist: Blacklist{Disabled: disabled}}, fleet(1))
		_, done, err := r.begin(ask{ctx: r.deadline(5 * time.Millisecond)})
		if err != nil {
			t.Fatal(err)
		}
		r.advance(5 * time.Millisecond)
		done(ended(fails(codes.DeadlineExceeded)))
		s := r.state("i0")
		if s.Failures != 0 || time.Duration(s.Load) != 5*time.Millisecond {
			t.Errorf("blacklist disabled %t: %d failures, load %v; want none, and the 5ms that it had", disabled, s.Failures,
				time.Duration(s.Load))
		}
	}
}

// recorder is a strategy that notes the samples it gets, and checks what choosers are promised.
type recorder struct{ Random }

func (recorder) Name() string { return "test-recorder" }

func (recorder) Record(_ *Endpoint, s load.Sample) { samples = append(samples, s) }

func (recorder) Build(env Env) Chooser {
	return &recorderChooser{n: len(env.Members), previous: env.Previous}
}

type recorderChooser struct {
	n        int
	previous Chooser
	calls    []Call
}

func (c *recorderChooser) Choose(call Call) int {
	c.calls = append(c.calls, call)
	return -c.n - 1 // out of range: taken modulo the members
}

var samples []load.Sample

func TestSamples(t *testing.T) {
	for _, tt := range []struct {
		name   string
		method string
		call   *callctx.Call
		err    error
		left   time.Duration
		want   load.Sample // but for Now
	}{
		{"success", "", nil, nil, 0, load.Sample{Latency: 7e6}},
		{"answer", "", nil, fails(codes.NotFound), 0, load.Sample{Latency: 7e6}},
		{"failure", "", nil, fails(codes.Unavailable), 0, load.Sample{Latency: 7e6, Failed: true}},
		{"doubtful failure", "", nil, fails(codes.Unknown), 0, load.Sample{Latency: 7e6, Failed: true}},
		{"asks for less", "", nil, fails(codes.ResourceExhausted), 0, load.Sample{Latency: 7e6, Failed: true}},
		{"cancelled", "", nil, fails(codes.Canceled), 0, load.Sample{Latency: 7e6, Cancelled: true}},
		{"no patience", "", nil, fails(codes.DeadlineExceeded), time.Millisecond, load.Sample{Latency: 7e6, Cancelled: true}},
		{"too slow", "", nil, fails(codes.DeadlineExceeded), time.Second, load.Sample{Latency: 7e6, Failed: true}},
		{"stream", "/grpc.health.v1.Health/Watch", nil, nil, 0, load.Sample{Latency: -1}},
		{"stream that failed", "/grpc.health.v1.Health/Watch", nil, fails(codes.Unavailable), 0, load.Sample{Latency: -1, Failed: true}},
		{"unary by descriptor", "/grpc.health.v1.Health/Check", nil, nil, 0, load.Sample{Latency: 7e6}},
		{"stream by the wrapper", "", &callctx.Call{Kind: callctx.Stream}, nil, 0, load.Sample{Latency: -1}},
		{"unary by the wrapper", "/grpc.health.v1.Health/Watch", &callctx.Call{Kind: callctx.Unary}, nil, 0, load.Sample{Latency: 7e6}},
		{"the wrapper does not know", "/grpc.health.v1.Health/Watch", &callctx.Call{}, nil, 0, load.Sample{Latency: -1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, Config{Strategy: recorder{}}, fleet(2))
			samples = nil
			a := ask{method: tt.method, ctx: t.Context()}
			if tt.left != 0 {
				a.ctx = r.deadline(tt.left)
			}
			if tt.call != nil {
				a.ctx = with(a.ctx, tt.call)
			}
			_, done, err := r.begin(a)
			if err != nil {
				t.Fatal(err)
			}
			r.advance(7 * time.Millisecond)
			tt.want.Now = r.clock.Now()
			done(ended(tt.err))
			if len(samples) != 1 || samples[0] != tt.want {
				t.Errorf("samples are %+v, want %+v", samples, tt.want)
			}
		})
	}
}

// TestChooserIsTold the time at every question, also when nobody that it names can be used.
func TestChooserIsTold(t *testing.T) {
	r := newRig(t, Config{Strategy: recorder{}}, fleet(5))
	var tried callctx.Tried
	for i := range 5 {
		tried.Add(endpoint(r, fleet(5)[i].ID).identity())
	}
	r.call(ask{ctx: with(t.Context(), &callctx.Call{Tried: &tried})})
	c := r.p.byConfig.set.chooser.(*recorderChooser)
	for i, call := range c.calls {
		if call.Now != r.clock.Now() || call.Attempt != i {
			t.Errorf("question %d of %d is %+v, want Now %d and Attempt %d", i, len(c.calls), call, r.clock.Now(), i)
		}
	}
	if len(c.calls) < maxAsks {
		t.Errorf("asked %d times, want %d at least", len(c.calls), maxAsks)
	}
}

// TestPreviousChooser is the one of the same strategy and candidate set, or none.
func TestPreviousChooser(t *testing.T) {
	r := newRig(t, Config{}, fleet(3))
	r.update(Config{Strategy: recorder{}}, fleet(3))
	chooser := func() *recorderChooser { return r.p.byConfig.set.chooser.(*recorderChooser) }
	first := chooser()
	if first.previous != nil {
		t.Errorf("after another strategy Previous is %T, want nil", first.previous)
	}
	for name, change := range map[string]func(){
		"an update":             func() { r.update(Config{Strategy: recorder{}}, fleet(4)) },
		"another configuration": func() { r.update(Config{Strategy: recorder{}, Blacklist: Blacklist{Failures: 5}}, fleet(4)) },
		"a reconnect":           func() { r.drop(fleet(4)[2].Addr) },
	} {
		before := chooser()
		change()
		c := chooser()
		for c != nil && c != before { // a change may have taken several publications
			c, _ = c.previous.(*recorderChooser)
		}
		if chooser() == before || c != before {
			t.Errorf("after %s Previous does not lead to what Build returned before", name)
		}
	}
}

// TestNoContext: grpc-go always has one, others may not.
func TestNoContext(t *testing.T) {
	r := newRig(t, Config{Strategy: PeakEWMA{}}, fleet(2))
	res, err := r.cc.Picker().Pick(gbalancer.PickInfo{})
	if err != nil {
		t.Fatal(err)
	}
	res.Done(ended(status.Error(codes.Unavailable, "no")))
	f := filters.ID("i1")
	if _, err := r.cc.Picker().Pick(gbalancer.PickInfo{Ctx: filters.NewContext(t.Context(), f, "stock")}); err != nil {
		t.Fatal(err)
	}
	r.open++ // that one stays under way
}

// TestPickAllocatesNothing in steady state, whatever the call carries.
func TestPickAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector a sync.Pool drops what it is given, at random")
	}
	for _, s := range strategiesUnderTest {
		r := newRig(t, Config{Strategy: s}, shop())
		for name, a := range map[string]ask{
			"plain":    {ctx: t.Context()},
			"filter":   {ctx: bind(t, "track=canary", "orders")},
			"deadline": {ctx: r.deadline(time.Second)},
			"wrapper":  {ctx: with(t.Context(), new(callctx.Call))},
		} {
			info := gbalancer.PickInfo{Ctx: a.ctx, FullMethodName: "/orders.Orders/Get"}
			checkNoAllocations(t, s.Name()+", "+name, r.cc.Picker(), info)
		}
	}
}

// TestTriedBeforeEjected: by a picker from before the ejection, too, an endpoint that was tried is better than one that
// is out; and the call there is an ordinary one, whose failure counts.
func TestTriedBeforeEjected(t *testing.T) {
	r := newRig(t, Config{}, fleet(2))
	old := r.cc.Picker()
	r.sicken("i1", fails(codes.Unavailable))
	var tried callctx.Tried
	tried.Add(endpoint(r, "i0").identity())
	info := gbalancer.PickInfo{Ctx: with(t.Context(), &callctx.Call{Tried: &tried}), FullMethodName: "/a/b"}
	for range 3 {
		res, err := old.Pick(info)
		if err != nil || res.SubConn != r.cc.Conn("10.0.0.1:80") {
			t.Fatalf("picked %v (%v), want i0", res.SubConn, err)
		}
		res.Done(ended(fails(codes.Unavailable)))
		r.settle()
	}
	if !r.state("i0").Ejected {
		t.Error("three failures of second attempts did not eject")
	}
}

// TestShortcutsOfMethods: methods that share a place get their own answers, and none allocates once it is known.
func TestShortcutsOfMethods(t *testing.T) {
	watch, check := "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/Check"
	twin := "/grpc.wealth.v1.Health/Watch" // differs in a byte that the place does not depend on, and is unknown
	for range 3 {
		if !isStream(watch) || isStream(check) || isStream(twin) || isStream("") {
			t.Fatal("a method is taken for what it is not")
		}
	}
	if n := testing.AllocsPerRun(100, func() { isStream(watch); isStream(twin) }); n > 0 {
		t.Errorf("%v allocations for methods that are known, want none", n)
	}
}

// TestMethodsAreBounded: what was remembered about too many methods is forgotten, and is found out again.
func TestMethodsAreBounded(t *testing.T) {
	full := make(map[string]bool, maxMethods)
	for i := range maxMethods {
		full[fmt.Sprintf("/proxied.Service/M%d", i)] = false
	}
	old := methods.known.Swap(&full)
	defer methods.known.Store(old)
	for range 2 {
		if !methodIsStream("/grpc.health.v1.Health/Watch") || methodIsStream("/grpc.health.v1.Health/Check") || methodIsStream("nonsense") {
			t.Error("a method is taken for what it is not")
		}
	}
	if n := len(*methods.known.Load()); n != 3 {
		t.Errorf("%d methods are remembered after %d others, want the 3 asked for last", n, maxMethods)
	}
}

// TestAmpleTime holds ampleTime and the default classifier together: with so much time left it judges every end as if
// there was no deadline, with less it does not.
func TestAmpleTime(t *testing.T) {
	late := fails(codes.DeadlineExceeded)
	if outcome.Default("", late, ampleTime-1) == outcome.Default("", late, outcome.NoDeadline) {
		t.Errorf("a deadline %v away is judged like none, want a difference", ampleTime-1)
	}
	for c := range codes.Code(17) {
		for _, left := range []time.Duration{ampleTime, ampleTime + 1, time.Second, time.Hour} {
			if got, want := outcome.Default("", fails(c), left), outcome.Default("", fails(c), outcome.NoDeadline); got != want {
				t.Errorf("%v with %v left is %v, want %v as without a deadline", c, left, got, want)
			}
		}
	}
}

// TestAnswersOutOfRange are taken modulo the number of members, the first answer too.
func TestAnswersOutOfRange(t *testing.T) {
	r := newRig(t, Config{}, fleet(3))
	set := r.p.byConfig.set
	for _, answer := range []int{0, 2, 3, 5, 1000, -1, math.MinInt} {
		set.chooser = stubborn(answer)
		want := set.members[uint(answer)%3].id.ID
		if got := r.call(ask{}); got != want {
			t.Errorf("answer %d of 3: %s was picked, want %s", answer, got, want)
		}
		if got := r.call(ask{ctx: r.deadline(time.Millisecond)}); got != want {
			t.Errorf("answer %d of 3, with a deadline: %s was picked, want %s", answer, got, want)
		}
	}
}

// stubborn always gives the same answer.
type stubborn int

func (s stubborn) Choose(Call) int { return int(s) }
