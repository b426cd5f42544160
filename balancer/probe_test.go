package balancer

import (
	"context"
	"testing"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/internal/callctx"
)

func TestProbe(t *testing.T) {
	cancelled := status.FromContextError(context.Canceled).Err()
	for _, tt := range []struct {
		name            string
		end             func(r *rig, done func(gbalancer.DoneInfo))
		ejected, probes bool
	}{
		{"success", func(_ *rig, done func(gbalancer.DoneInfo)) { done(ended(nil)) }, false, false},
		{"answer", func(_ *rig, done func(gbalancer.DoneInfo)) { done(ended(fails(codes.NotFound))) }, false, false},
		{"failure", func(_ *rig, done func(gbalancer.DoneInfo)) { done(ended(fails(codes.Unavailable))) }, true, false},
		{"doubtful failure", func(_ *rig, done func(gbalancer.DoneInfo)) { done(ended(fails(codes.Unknown))) }, true, false},
		{"discarded", func(_ *rig, done func(gbalancer.DoneInfo)) { done(gbalancer.DoneInfo{}) }, false, true},
		{"cancelled", func(_ *rig, done func(gbalancer.DoneInfo)) { done(ended(cancelled)) }, false, true},
		{"asks for less", func(_ *rig, done func(gbalancer.DoneInfo)) { done(ended(fails(codes.ResourceExhausted))) }, false, true},
		{"just in time", func(r *rig, done func(gbalancer.DoneInfo)) {
			r.advance(5*time.Second - 1)
			done(ended(nil))
		}, false, false},
		{"too late", func(r *rig, done func(gbalancer.DoneInfo)) {
			r.advance(5 * time.Second)
			done(ended(nil))
		}, true, false},
		{"discarded too late", func(r *rig, done func(gbalancer.DoneInfo)) {
			r.advance(5 * time.Second)
			done(gbalancer.DoneInfo{})
		}, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, Config{}, fleet(4))
			r.sicken("i2", fails(codes.Unavailable))
			r.serveOut("i2")
			id, done, err := r.begin(ask{})
			if err != nil || id != "i2" {
				t.Fatalf("the first call after the return went to %q (%v), want i2", id, err)
			}
			if n := r.calls(40, ask{})["i2"]; n > 0 {
				t.Fatalf("%d calls went to i2 beside its probing call", n)
			}
			tt.end(r, done)
			if s := r.state("i2"); s.Ejected != tt.ejected || s.Probing != tt.probes {
				t.Fatalf("ejected %t, probing %t, want %t, %t", s.Ejected, s.Probing, tt.ejected, tt.probes)
			}
			r.answers["i2"] = nil
			r.flush()
			if n := r.calls(1, ask{})["i2"]; tt.probes && n != 1 {
				t.Error("the next call does not probe")
			}
			if tt.ejected {
				if n := r.calls(40, ask{})["i2"]; n > 0 {
					t.Errorf("%d calls went to it while it is ejected again", n)
				}
				r.advance(54 * time.Second)
				if s := r.state("i2"); !s.Ejected {
					t.Error("the second ejection lasts less than 54 s")
				}
				r.advance(12 * time.Second)
				if s := r.state("i2"); s.Ejected {
					t.Error("the second ejection lasts more than 66 s")
				}
			}
		})
	}
}

func TestProbeByStream(t *testing.T) {
	for name, a := range map[string]ask{
		"by descriptor":  {method: "/grpc.health.v1.Health/Watch"},
		"by the wrapper": {ctx: with(t.Context(), &callctx.Call{Kind: callctx.Stream})},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Config{}, fleet(4))
			r.sicken("i2", fails(codes.Unavailable))
			r.serveOut("i2")
			id, done, err := r.begin(a)
			if err != nil || id != "i2" {
				t.Fatalf("the first call went to %q (%v), want i2", id, err)
			}
			r.advance(5*time.Second - 1)
			if n := r.calls(40, ask{})["i2"]; n > 0 {
				t.Fatal("a call went to i2 before the stream's time was over")
			}
			r.advance(1)
			if s := r.state("i2"); s.Ejected || !s.Probing {
				t.Fatalf("an open stream decided: ejected %t, probing %t", s.Ejected, s.Probing)
			}
			id, second, err := r.begin(ask{})
			if err != nil || id != "i2" {
				t.Fatalf("the next call went to %q (%v), want i2 to be probed", id, err)
			}
			done(ended(fails(codes.Unavailable))) // it was given up, and decides nothing any more
			if s := r.state("i2"); s.Ejected || !s.Probing {
				t.Fatalf("the stream's late end decided: ejected %t, probing %t", s.Ejected, s.Probing)
			}
			second(ended(nil))
			if s := r.state("i2"); s.Ejected || s.Probing {
				t.Fatal("the second probe did not decide")
			}
		})
	}
}

// TestSeveralProbes: of two endpoints on probation each gets a call.
func TestSeveralProbes(t *testing.T) {
	for range 20 {
		r := newRig(t, Config{}, fleet(6))
		r.sicken("i1", fails(codes.Unavailable))
		r.sicken("i4", fails(codes.Unavailable))
		r.advance(40 * time.Second)
		got := make(map[string]bool)
		for range 8 {
			id, done, err := r.begin(ask{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { done(ended(nil)) })
			if len(got) < 2 {
				got[id] = true
			} else if id == "i1" || id == "i4" {
				t.Fatalf("a second call probes %s", id)
			}
		}
		if !got["i1"] || !got["i4"] {
			t.Fatalf("the first two calls went to %v, want i1 and i4 to be probed", got)
		}
	}
}

// TestDoubtfulProbe: after a long good record an UNKNOWN alone does not put the endpoint out again; it stays on
// probation, one call at a time, until half of its outcomes are failures.
func TestDoubtfulProbe(t *testing.T) {
	r := newRig(t, Config{}, fleet(2))
	r.calls(2*windowSize, ask{})
	r.sicken("i1", fails(codes.Unavailable))
	r.serveOut("i1")
	r.answers["i1"] = fails(codes.Unknown)
	for failures := 4; failures < windowSize/2; failures++ {
		if id := r.call(ask{}); id != "i1" {
			t.Fatalf("with %d failures on record the call went to %s, want i1 to be probed", failures, id)
		}
		if s := r.state("i1"); s.Ejected || !s.Probing {
			t.Fatalf("with %d failures of 20 on record: ejected %t, probing %t", failures, s.Ejected, s.Probing)
		}
	}
	if r.call(ask{}); !r.state("i1").Ejected {
		t.Error("not ejected with half of its outcomes failures")
	}
}
