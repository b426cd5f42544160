package ratelimit

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// load is what a server did with the calls that were offered to it.
type load struct {
	offered, refused int
	good             []time.Duration // latencies of calls that were answered in time
	took             time.Duration
}

func (l *load) goodput() float64 { return float64(len(l.good)) / l.took.Seconds() }

func (l *load) p99() time.Duration {
	slices.Sort(l.good)
	if len(l.good) == 0 {
		return 0
	}
	return l.good[len(l.good)*99/100]
}

const (
	workers  = 8
	meanWork = 10 * time.Millisecond
	capacity = float64(workers) / 0.010 // calls a second
)

// pool handles calls with a number of workers, in the order of arrival; each call takes 5 to 15 ms of one of them,
// for which work passes the time.
func pool(rng *rand.Rand, work func(time.Duration)) func(context.Context, string) (string, error) {
	var mu sync.Mutex
	free := make(chan struct{}, workers)
	for range workers {
		free <- struct{}{}
	}
	return func(ctx context.Context, in string) (string, error) {
		mu.Lock()
		d := time.Duration((0.5 + rng.Float64()) * float64(meanWork))
		mu.Unlock()
		select {
		case <-free:
		case <-ctx.Done():
			return "", ctx.Err()
		}
		work(d)
		free <- struct{}{}
		return in, ctx.Err()
	}
}

// offer makes perSecond calls a second, at random moments, for d, each with a deadline of a second.
func offer(r *rig, rng *rand.Rand, d time.Duration, perSecond float64) *load {
	synctest.Wait() // the connection and the server are idle
	l := new(load)
	var mu sync.Mutex
	var calls sync.WaitGroup
	start := time.Now()
	end := start.Add(d)
	for {
		time.Sleep(time.Duration(rng.ExpFloat64() / perSecond * 1e9))
		if time.Now().After(end) {
			break
		}
		l.offered++
		calls.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			began := time.Now()
			err := r.call(ctx, unary, 1)
			took := time.Since(began)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				l.good = append(l.good, took)
			} else if isRefused(err) {
				l.refused++
			}
		})
	}
	calls.Wait()
	l.took = time.Since(start)
	return l
}

// TestOverload is the row of the issue: a server at three times its capacity, the whole of gRPC in virtual time.
func TestOverload(t *testing.T) {
	var l *Limiter
	run := func(limited bool, warm, perSecond float64, d time.Duration) (out *load) {
		synctest.Test(t, func(t *testing.T) {
			if limited {
				l = mustNew(t, Config{Policy: Policy{Adaptive: Adaptive{Enabled: true}}})
			}
			r, stop := newRig(t, rigOptions{server: l})
			defer stop()
			r.handle = pool(rand.New(rand.NewPCG(1, 1)), time.Sleep)
			rng := rand.New(rand.NewPCG(2, 2))
			offer(r, rng, 2*time.Second, warm)
			out = offer(r, rng, d, perSecond)
		})
		return out
	}
	unloaded := run(false, 0.1*capacity, 0.1*capacity, 10*time.Second)
	off := run(false, 0.3*capacity, 3*capacity, 3*time.Second)
	on := run(true, 0.3*capacity, 3*capacity, 3*time.Second)
	t.Logf("unloaded:             p99 %v", unloaded.p99())
	for _, x := range []struct {
		name string
		*load
	}{{"3 x capacity, off:", off}, {"3 x capacity, on:", on}} {
		t.Logf("%-21s goodput %5.1f %% of capacity, p99 %v (%.1f times), %d of %d refused", x.name,
			100*x.goodput()/capacity, x.p99(), float64(x.p99())/float64(unloaded.p99()), x.refused, x.offered)
	}
	if got := on.goodput() / capacity; got < 0.95 {
		t.Errorf("goodput = %.3f of capacity, want 0.95 or more", got)
	}
	if got := on.p99(); float64(got) > 2.2*float64(unloaded.p99()) {
		t.Errorf("p99 of accepted calls = %v, want at most 2.2 times the unloaded one, which is %v", got, unloaded.p99())
	}
	if got := off.goodput() / capacity; got > 0.5 {
		t.Errorf("goodput without limit = %.3f of capacity: the scenario is no overload", got)
	}
	if g := l.State().Scopes[0].Concurrency; g.InFlight != 0 {
		t.Errorf("in flight = %d after the calls, want 0", g.InFlight)
	}
}
