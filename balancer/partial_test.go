package balancer

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/outcome"
)

// A few seconds in which calls fail everywhere, though not all of them, must not keep instances out for minutes:
// those over the cap are kept in, cleared by the next success and ejected again, without having been out.
func TestBrownout(t *testing.T) {
	for _, p := range []float64{0.3, 0.5, 0.7} {
		r := newRig(t, Config{}, fleet(8))
		rnd := rand.New(rand.NewPCG(3, uint64(p*10)))
		for range 5000 { // 5 s at 1000 calls a second
			_, done, err := r.begin(ask{})
			if err != nil {
				t.Fatal(err)
			}
			if rnd.Float64() < p {
				done(ended(fails(codes.Unavailable)))
			} else {
				done(ended(nil))
			}
			r.advance(time.Millisecond)
		}
		waited := time.Duration(0)
		for ; waited < 10*time.Minute; waited += time.Second {
			if got := r.calls(80, ask{}); len(got) == 8 && len(r.out()) == 0 {
				break
			}
			r.advance(time.Second)
		}
		if waited > 70*time.Second { // two ejections' worth
			t.Errorf("p = %v: all instances serve again after %v, want a minute or so", p, waited)
		}
	}
}

// Healthy instances that are draining are better than one that is blacklisted: they answer.
func TestDrainingBeforeBlacklisted(t *testing.T) {
	ins := fleet(3)
	r := newRig(t, Config{}, ins)
	r.answers["i2"] = fails(codes.Unavailable)
	r.calls(12, ask{})
	ins[0].Draining, ins[1].Draining = true, true
	r.update(Config{}, ins)
	if got := r.calls(30, ask{}); got["i2"] != 0 || len(got) != 2 {
		t.Errorf("calls go to %v, want i0 and i1, which drain, and not i2, which is out", got)
	}
	r.advance(40 * time.Second) // i2's time is over: it is probed, and out again
	if got := r.calls(30, ask{}); got["i2"] > 1 {
		t.Errorf("calls go to %v, want at most a probing one to i2", got)
	}
}

func init() {
	outcome.Register("test-everything", func(string, error, time.Duration) outcome.Class { return outcome.Failure })
}

// What a classifier of the user's calls a failure is one, also if it ends in UNKNOWN after many good calls.
func TestClassifierDecidesAboutUnknown(t *testing.T) {
	for classifier, want := range map[string]bool{"": false, "test-everything": true} {
		r := newRig(t, Config{Blacklist: Blacklist{Classifier: classifier}}, fleet(2))
		r.calls(60, ask{ctx: context.Background()})
		r.answers["i1"] = fails(codes.Unknown)
		r.calls(6, ask{})
		if got := r.state("i1").Ejected; got != want {
			t.Errorf("classifier %q: ejected = %v after three UNKNOWN, want %v", classifier, got, want)
		}
	}
}
