package main

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/internal/greeter"
)

// traffic is a steady stream of calls, counted by who answered.
type traffic struct {
	conn *grpc.ClientConn

	stop context.CancelFunc
	done sync.WaitGroup

	mu     sync.Mutex
	filter filters.Filter // what the calls carry
	counts tally
}

// tally is what became of calls.
type tally struct {
	calls, failed int
	by            map[string]int
	lastErr       error
}

const callers = 8

// startTraffic starts the callers.
func startTraffic(ctx context.Context, conn *grpc.ClientConn) *traffic {
	ctx, stop := context.WithCancel(ctx)
	t := &traffic{conn: conn, stop: stop}
	t.counts.by = make(map[string]int)
	for range callers {
		t.done.Go(func() { t.caller(ctx) })
	}
	return t
}

func (t *traffic) caller(ctx context.Context) {
	tick := time.NewTicker(4 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			t.call(ctx)
		}
	}
}

func (t *traffic) call(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	t.mu.Lock()
	f := t.filter
	t.mu.Unlock()
	if !f.IsZero() {
		ctx = filters.NewContext(ctx, f, "greeter") // the one line that routes a canary
	}
	who, err := greeter.Hello(ctx, t.conn, "quickstart")
	if ctx.Err() == context.Canceled {
		return // the demonstration is over
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if f != t.filter {
		return // it began in the act before
	}
	t.counts.calls++
	if err != nil {
		t.counts.failed++
		t.counts.lastErr = err
		return
	}
	t.counts.by[who]++
}

// begin starts counting anew, with a filter that the calls carry from now on.
func (t *traffic) begin(f filters.Filter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.filter = f
	t.counts = tally{by: make(map[string]int)}
}

// now is what was counted since begin.
func (t *traffic) now() tally {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.counts
	c.by = make(map[string]int, len(t.counts.by))
	for id, n := range t.counts.by {
		c.by[id] = n
	}
	return c
}

// end stops the callers and waits for them.
func (t *traffic) end() {
	t.stop()
	t.done.Wait()
}
