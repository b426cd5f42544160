package balancer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/filters"
)

// strategiesUnderTest are all that come with the package.
var strategiesUnderTest = []Strategy{RoundRobin{}, Random{}, Weighted{}, LeastRequest{}, PeakEWMA{}, Hash{},
	Weighted{Load: "orca"}, Prequal{}, Prequal{Reports: true}, Keel{}}

// remembersFailures says of a strategy that it avoids instances that failed, for longer than the blacklist does.
func remembersFailures(s Strategy) bool {
	switch s.(type) {
	case PeakEWMA, Prequal, Keel:
		return true
	}
	return false
}

// sicken has id fail with err from now on, and calls it until it is ejected.
func (r *rig) sicken(id string, err error) {
	r.t.Helper()
	r.answers[id] = err
	for range windowSize {
		r.call(ask{ctx: filters.NewContext(r.t.Context(), filters.ID(id))})
		if r.state(id).Ejected {
			r.flush()
			return
		}
	}
	r.t.Fatalf("%s is not ejected after %d calls that fail with %v", id, windowSize, err)
}

// serveOut lets the ejection of id end.
func (r *rig) serveOut(id string) {
	r.t.Helper()
	r.advance(r.state(id).Remaining)
	if s := r.state(id); s.Ejected || !s.Probing {
		r.t.Fatalf("%s after its ejection: ejected %t, probing %t, want false, true", id, s.Ejected, s.Probing)
	}
}

// TestExactCount is the promise to the user: with one caller, three calls go to an instance that fails all of them,
// and one more after each return.
func TestExactCount(t *testing.T) {
	for _, s := range strategiesUnderTest {
		for _, code := range []codes.Code{codes.Unavailable, codes.Internal, codes.Unknown, codes.DataLoss} {
			t.Run(s.Name()+"/"+code.String(), func(t *testing.T) {
				r := newRig(t, Config{Strategy: s}, fleet(5))
				r.answers["i3"] = fails(code)
				want, most := 3, 3
				if remembersFailures(s) {
					want = 1 // stays away by itself
				}
				got := 0
				for cycle := range 6 {
					// Each call takes a while, so that peak_ewma has something to measure.
					for range 300 {
						id, done, err := r.begin(ask{})
						if err != nil {
							t.Fatal(err)
						}
						if id != "i3" {
							r.advance(time.Millisecond)
						} else {
							got++
						}
						done(ended(r.answers[id]))
					}
					if got < want || got > most {
						t.Fatalf("%d calls went to the failing instance until cycle %d, want %d to %d", got, cycle, want, most)
					}
					if remembersFailures(s) {
						return // the rest is the policy's doing, whatever the strategy
					}
					r.serveOut("i3")
					want, most = want+1, most+1
				}
				r.answers["i3"] = nil
				if r.calls(1, ask{})["i3"] != 1 || r.state("i3").Probing {
					t.Fatal("the first call after a return is not the probing one, or its success does not clear")
				}
				if n := r.calls(1000, ask{})["i3"]; n < 100 {
					t.Fatalf("%d of 1000 calls went to the instance that is well again", n)
				}
			})
		}
	}
}

// TestSmallFleets has every instance fail: how many stay in, that nobody is refused, and that all come back.
func TestSmallFleets(t *testing.T) {
	for n, wantOut := range map[int]int{1: 0, 2: 1, 3: 1, 4: 2, 5: 2, 9: 4} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			r := newRig(t, Config{}, fleet(n))
			for i := range n {
				r.answers[fmt.Sprintf("i%d", i)] = fails(codes.Unavailable)
			}
			r.calls(100*n, ask{})
			r.flush()
			for minute := range 30 {
				got := r.calls(100*n, ask{})
				if len(got) < n-wantOut {
					t.Fatalf("minute %d: calls went to %v, want %d instances at least", minute, got, n-wantOut)
				}
				r.advance(time.Minute)
			}
			r.answers = nil
			for range 20 {
				r.calls(n, ask{})
				r.advance(time.Minute)
			}
			if got := r.calls(10*n, ask{}); len(got) != n {
				t.Fatalf("after all are well again calls go to %v, want %d instances", got, n)
			}
			if out := r.out(); out != nil || len(r.p.sick) > 0 {
				t.Fatalf("%v are out, %d remembered as sick, want none", out, len(r.p.sick))
			}
		})
	}
}

func TestCapIsPerCandidateSet(t *testing.T) {
	ins := fleet(10)
	for i := range ins {
		ins[i].Labels = map[string]string{"half": fmt.Sprint(i % 2), "fifth": fmt.Sprint(i / 5)}
	}
	r := newRig(t, Config{}, ins)
	for _, in := range ins {
		if in.Labels["half"] == "0" {
			r.answers[in.ID] = fails(codes.Unavailable)
		}
	}
	r.calls(500, ask{})
	r.flush()
	if out := r.out(); len(out) != 5 {
		t.Fatalf("out are %v, want the five that fail", out)
	}
	if got := r.calls(100, ask{}); len(got) != 5 {
		t.Fatalf("without a filter calls go to %v, want the five that work", got)
	}
	for filter, want := range map[string]int{
		"half=0":         3, // all five fail: two may be out
		"half=1":         5,
		"fifth=0":        2, // i0, i2 and i4 fail of five: two may be out, and the one that stays must serve
		"half=0,fifth=1": 1, // i6 and i8 fail: one may be out
	} {
		got := r.calls(200, ask{ctx: bind(t, filter)})
		failing := 0
		for id := range got {
			if r.answers[id] != nil {
				failing++
			}
		}
		if filter == "fifth=0" {
			if failing != 1 || len(got) != 3 {
				t.Errorf("%s: calls go to %v, want both that work and one that fails", filter, got)
			}
			continue
		}
		if len(got) != want {
			t.Errorf("%s: calls go to %v, want %d instances", filter, got, want)
		}
	}
}

func TestKeptInstanceServesAndIsCleared(t *testing.T) {
	r := newRig(t, Config{}, fleet(1))
	r.answers["i0"] = fails(codes.Unavailable)
	r.calls(3, ask{})
	r.flush()
	if s := r.state("i0"); !s.Ejected || !s.Kept {
		t.Fatalf("after three failures the only instance is %+v, want it ejected, and kept", s)
	}
	r.answers["i0"] = fails(codes.NotFound)
	r.call(ask{})
	if s := r.state("i0"); s.Ejected || s.Probing || s.Kept {
		t.Fatal("an answer did not clear the instance that was kept in")
	}
}

// TestLeastBadStayIn has four of four failing, of which two are kept: those that were ejected less often.
func TestLeastBadStayIn(t *testing.T) {
	r := newRig(t, Config{}, fleet(4))
	// i0 and i1 have a record.
	for range 3 {
		for _, id := range []string{"i0", "i1"} {
			r.sicken(id, fails(codes.Unavailable))
		}
		r.advance(r.state("i0").Remaining + r.state("i1").Remaining)
		r.calls(8, ask{})
	}
	for i := range 4 {
		r.answers[fmt.Sprintf("i%d", i)] = fails(codes.Unavailable)
	}
	r.calls(400, ask{})
	r.flush()
	got := r.calls(100, ask{})
	if got["i2"] == 0 || got["i3"] == 0 || len(got) != 2 {
		t.Fatalf("calls go to %v, want i2 and i3, which were ejected less often than i0 and i1", got)
	}
}

// TestOrdinaryErrorsNeverEject has ends that say nothing about the instance.
func TestOrdinaryErrorsNeverEject(t *testing.T) {
	for _, code := range []codes.Code{codes.NotFound, codes.Canceled, codes.InvalidArgument, codes.AlreadyExists,
		codes.PermissionDenied, codes.FailedPrecondition, codes.Aborted, codes.OutOfRange, codes.Unimplemented,
		codes.Unauthenticated, codes.ResourceExhausted} {
		r := newRig(t, Config{}, fleet(3))
		r.answers["i1"] = fails(code)
		if r.calls(900, ask{}); len(r.p.sick) > 0 {
			t.Errorf("%v ejects", code)
		}
	}
	r := newRig(t, Config{}, fleet(3))
	r.answers["i1"] = context.Canceled
	if r.calls(900, ask{}); len(r.p.sick) > 0 {
		t.Error("context.Canceled ejects")
	}
}

func TestDeadlines(t *testing.T) {
	for _, tt := range []struct {
		left time.Duration
		want bool
	}{{9 * time.Millisecond, false}, {10 * time.Millisecond, true}, {time.Second, true}, {-time.Second, false}} {
		r := newRig(t, Config{}, fleet(3))
		r.answers["i1"] = fails(codes.DeadlineExceeded)
		for range 30 {
			r.call(ask{ctx: r.deadline(tt.left)})
		}
		if got := r.state("i1").Ejected; got != tt.want {
			t.Errorf("DEADLINE_EXCEEDED of calls with %v left: ejected %t, want %t", tt.left, got, tt.want)
		}
	}
}

// TestPlainErrorsAtRandom: a handler that returns an error for every tenth call stays in service, though its errors
// come three in a row at times. It has been in service for a while: among the very first calls three in a row are
// all that is known, and do count.
func TestPlainErrorsAtRandom(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 8))
	r := newRig(t, Config{}, fleet(5))
	r.calls(5*windowSize, ask{})
	runs, run := 0, make(map[string]int)
	for range 50000 {
		id, done, err := r.begin(ask{})
		if err != nil {
			t.Fatal(err)
		}
		if rnd.IntN(10) == 0 {
			done(ended(fails(codes.Unknown)))
			if run[id]++; run[id] == 3 {
				runs++
			}
		} else {
			done(ended(nil))
			run[id] = 0
		}
	}
	if runs < 10 {
		t.Fatalf("%d runs of three errors, want enough to mean something", runs)
	}
	if n := r.p.describe().Counters.Ejections; n > 0 {
		t.Errorf("%d ejections, want none", n)
	}
}

// TestLateEnds: calls that were under way when an endpoint was ejected say nothing new.
func TestLateEnds(t *testing.T) {
	r := newRig(t, Config{Strategy: RoundRobin{}}, fleet(4))
	var late []func(gbalancer.DoneInfo)
	for len(late) < 6 {
		id, done, err := r.begin(ask{})
		if err != nil {
			t.Fatal(err)
		}
		if id == "i1" {
			late = append(late, done)
		} else {
			done(ended(nil))
		}
	}
	for _, done := range late[:4] {
		done(ended(fails(codes.Unavailable)))
	}
	if n := r.p.describe().Counters.Ejections; n != 1 {
		t.Fatalf("%d ejections by four failures, want 1", n)
	}
	late[4](ended(nil))
	if !r.state("i1").Ejected {
		t.Fatal("a call from before the ejection ended it")
	}
	r.serveOut("i1")
	late[5](ended(fails(codes.Unavailable)))
	if s := r.state("i1"); s.Ejected || !s.Probing {
		t.Fatalf("a call from before the ejection decided the return: ejected %t, probing %t", s.Ejected, s.Probing)
	}
}

// TestReasons: an ejection and its end are events with a reason.
func TestReasons(t *testing.T) {
	var events []Event
	defer Observe(func(e Event) {
		if e.Kind != Published {
			events = append(events, e)
		}
	})()
	r := newRig(t, Config{}, fleet(4))
	r.sicken("i2", fails(codes.Unavailable))
	r.serveOut("i2")
	r.call(ask{})
	r.serveOut("i2")
	_, done, err := r.begin(ask{})
	if err != nil {
		t.Fatal(err)
	}
	r.advance(5 * time.Second)
	done(ended(nil))
	r.serveOut("i2")
	r.answers["i2"] = nil
	r.call(ask{})
	want := []struct {
		kind      EventKind
		ejections int
		reason    string
	}{
		{Ejected, 1, "3 calls in a row failed, the last with: rpc error: code = Unavailable desc = no"},
		{Ejected, 2, "a probing call failed: rpc error: code = Unavailable desc = no"},
		{Ejected, 3, "a probing call did not end within 5s"},
		{Returned, 3, "a call succeeded"},
	}
	if len(events) != len(want) {
		t.Fatalf("events are %+v, want %d", events, len(want))
	}
	for i, w := range want {
		e := events[i]
		if e.Kind != w.kind || e.Reason != w.reason || e.Ejections != w.ejections || e.ID != "i2" ||
			e.Addr != "10.0.0.3:80" || e.Service != "orders" || !strings.HasPrefix(e.Target, "lb:///") {
			t.Errorf("event %d is %+v, want %+v", i, e, w)
		}
		if full := time.Duration(w.ejections) * 30 * time.Second; e.Kind == Ejected && (e.For < full*9/10 || e.For > full*11/10) {
			t.Errorf("event %d: for %v, want %v and 10 %% at most", i, e.For, full)
		}
	}
	if c := r.p.describe().Counters; c.Ejections != 3 || c.Returns != 1 {
		t.Errorf("counters are %+v, want 3 ejections and 1 return", c)
	}
}

// TestStaleSnapshot: between an ejection and the next picker, the old picker does not choose the endpoint.
func TestStaleSnapshot(t *testing.T) {
	for _, s := range strategiesUnderTest {
		r := newRig(t, Config{Strategy: s}, fleet(4))
		old := r.cc.Picker()
		r.sicken("i1", fails(codes.Unavailable))
		for range 100 {
			res, err := old.Pick(gbalancer.PickInfo{Ctx: t.Context(), FullMethodName: "/a/b"})
			if err != nil {
				t.Fatal(err)
			}
			if res.Done(ended(nil)); res.SubConn == r.cc.Conn("10.0.0.2:80") {
				t.Fatalf("%s: an old picker chose an ejected endpoint", s.Name())
			}
		}
	}
}

func TestSickListIsSorted(t *testing.T) {
	a, b, c, d := new(Endpoint), new(Endpoint), new(Endpoint), new(Endpoint)
	a.phaseNow.Store(uint32(probing))
	a.sentence.level = 9
	for i, e := range []*Endpoint{b, c, d} {
		e.phaseNow.Store(uint32(ejected))
		e.sentence.level = 1
		e.sentence.began = int64(10 - i)
	}
	d.word.Store(uint64(steps(0, "FFFF")))
	got := []*Endpoint{d, c, b, a}
	slices.SortStableFunc(got, worse)
	for i, want := range []*Endpoint{a, c, b, d} {
		if got[i] != want {
			t.Errorf("place %d is wrong: want probing first, then few failures, then the longest out", i)
		}
	}
}

// TestClearedMeansClean: after a return it takes three failures again, also if the probing call was no success but an
// answer, which by itself ends no run of failures.
func TestClearedMeansClean(t *testing.T) {
	for _, end := range []error{nil, fails(codes.NotFound)} {
		r := newRig(t, Config{}, fleet(4))
		r.sicken("i2", fails(codes.Unavailable))
		r.serveOut("i2")
		_, done, err := r.begin(ask{})
		if err != nil {
			t.Fatal(err)
		}
		done(ended(end))
		for k := range 3 {
			if s := r.state("i2"); s.Ejected || s.Probing {
				t.Fatalf("returned by %v: out again after %d failures", end, k)
			}
			r.hold("i2")(ended(fails(codes.Unavailable)))
		}
		if !r.state("i2").Ejected {
			t.Errorf("returned by %v: not ejected by three failures", end)
		}
	}
}
