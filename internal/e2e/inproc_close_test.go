package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/test/bufconn"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/internal/greeter"
	"github.com/evenkeel/evenkeel/internal/leak"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/memory"
	"github.com/evenkeel/evenkeel/resolver"
	"github.com/evenkeel/evenkeel/server"
)

// Close of the client ends everything that it started, also in the middle of calls, with an instance out and a
// registry that does not answer.
func TestClientCloseLeavesNothing(t *testing.T) {
	reg := memory.New()
	ls := fleet(t, reg, 5, func(int) spec { return spec{work: takes(5 * time.Millisecond)} })
	leak.Check(t)
	idle := runtime.NumGoroutine()
	conn := dial(t, reg, balancer.Config{}) // by turns: peak_ewma would rather avoid the instance than see it ejected
	ready(t, conn, ls)
	stop := balancer.Observe(func(balancer.Event) {})
	defer stop()
	ls[0].does(fails(errors.New("told to fail")))
	l := (&load{conn: conn, timeout: 5 * time.Second}).begin(t, 8)
	eventually(t, 20*time.Second, func() error { return ejectedAt(ls[0].addr) })
	reg.Fail(nil)
	at := l.count()
	eventually(t, 20*time.Second, func() error { return moreThan(l, at+100) })
	busy := runtime.NumGoroutine()
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	l.end()
	reg.Recover()
	t.Logf("%d goroutines before the client, %d with it", idle, busy)
	if busy <= idle {
		t.Error("the client ran no goroutine: this test proves nothing")
	}
}

// A watch ends with its context and leaves nothing, whatever it waits for.
func TestWatcherCloseLeavesNothing(t *testing.T) {
	leak.Check(t)
	reg := memory.New()
	r, err := reg.Register(t.Context(), "orders", registry.Instance{ID: "orders-0", Addr: nobody})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close(context.Background()) }()
	ctx, cancel := context.WithCancel(t.Context())
	seen, ended := make(chan int, 100), make(chan error, 1)
	go func() {
		ended <- reg.Watch(ctx, "orders", func(set []registry.Instance) { seen <- len(set) })
	}()
	if n := <-seen; n != 1 {
		t.Errorf("%d instances, want 1", n)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the watch ended with %v, want its context's error", err)
	}
	// And as clients hold it: two connections of one builder share a watch, the last to close ends it.
	b := resolver.NewBuilder(reg, balanced(balancer.Config{}))
	one, two := connect(t, "lb:///orders", b), connect(t, "lb:///orders", b)
	one.Connect()
	two.Connect()
	_ = one.Close()
	_ = two.Close()
}

// A server that has stopped leaves nothing, even while clients still try to reach it.
func TestServerStopLeavesNothing(t *testing.T) {
	leak.Check(t)
	reg := memory.New()
	l := startLocal(t, reg, spec{Instance: registry.Instance{ID: "orders-0"}, drain: 50 * time.Millisecond})
	conn := dial(t, reg, balancer.Config{})
	ready(t, conn, []*local{l})
	calls := (&load{conn: conn, timeout: 5 * time.Second, pause: time.Millisecond}).begin(t, 2)
	eventually(t, 20*time.Second, func() error { return moreThan(calls, 50) })
	if err := l.stop(); err != nil {
		t.Error(err)
	}
	calls.end()
}

// crowd is a great number of instances: real servers, with connections in memory so that no ports are used up.
type crowd struct {
	reg *memory.Registry
	wg  sync.WaitGroup

	mu     sync.Mutex
	doors  map[string]*bufconn.Listener // by address
	failed []error                      // of server.Serve
}

// come starts n instances and returns how to have them leave. It does not wait for them to be announced.
func (c *crowd) come(first, n int) (leave context.CancelFunc) {
	ctx, leave := context.WithCancel(context.Background())
	for i := first; i < first+n; i++ {
		door := bufconn.Listen(4 << 10)
		addr := fmt.Sprintf("10.0.%d.%d:80", i/250, i%250+1)
		c.mu.Lock()
		c.doors[addr] = door
		c.mu.Unlock()
		c.wg.Go(func() {
			err := c.serve(ctx, door, registry.Instance{ID: fmt.Sprintf("orders-%d", i), Addr: addr})
			c.mu.Lock()
			defer c.mu.Unlock()
			delete(c.doors, addr)
			if err != nil {
				c.failed = append(c.failed, err)
			}
		})
	}
	return leave
}

func (c *crowd) serve(ctx context.Context, lis net.Listener, in registry.Instance) error {
	s := grpc.NewServer(grpc.ReadBufferSize(4<<10), grpc.WriteBufferSize(4<<10))
	greeter.Register(s, greeter.HelloFunc(func(context.Context, string) (string, error) { return in.ID, nil }))
	return server.Serve(ctx, s, lis, server.Config{
		Registrar: c.reg, Service: "orders", Instance: in, NoSignals: true,
		DrainDelay: time.Second, Logger: slog.New(slog.DiscardHandler),
	})
}

func (c *crowd) dial(ctx context.Context, addr string) (net.Conn, error) {
	c.mu.Lock()
	door := c.doors[addr]
	c.mu.Unlock()
	if door == nil {
		return nil, fmt.Errorf("%s: nobody is there", addr)
	}
	conn, err := door.DialContext(ctx)
	return untimed{conn}, err
}

// untimed is a connection in memory that cannot hang: the deadline that grpc sets before it closes one would only
// keep bufconn's buffers alive for ten seconds more.
type untimed struct{ net.Conn }

// SetReadDeadline implements net.Conn.
func (untimed) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn.
func (untimed) SetWriteDeadline(time.Time) error { return nil }

// connected reports nil once the client knows n instances and is connected to all of them.
func connected(n int, addr string) error {
	for _, c := range balancer.Channels() {
		known, up, here := len(c.Endpoints), 0, false
		for _, e := range c.Endpoints {
			here = here || e.Instance.Addr == addr
			if e.State == connectivity.Ready {
				up++
			}
		}
		if here {
			if known != n || up != n {
				return fmt.Errorf("%d known, %d connected, want %d", known, up, n)
			}
			return nil
		}
	}
	return errNoChannel
}

// answered reports nil once n instances have answered calls.
func answered(l *load, n int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.by) < n {
		return fmt.Errorf("%d instances answered, want %d", len(l.by), n)
	}
	return nil
}

// usage is the live heap in bytes, and how many goroutines there are.
func usage() (heap uint64, goroutines int) {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // the first one empties pools into their victims
	runtime.ReadMemStats(&m)
	return m.HeapAlloc, runtime.NumGoroutine()
}

// A thousand instances appear and 999 of them leave. Calls go on all the time, and what they cost is given back:
// at least four fifths of the heap, and the goroutines.
func TestThousandComeAndGo(t *testing.T) {
	leak.Check(t)
	const many = 1000
	c := &crowd{reg: memory.New(), doors: make(map[string]*bufconn.Listener)}
	leaveLast := c.come(0, 1)
	t.Cleanup(func() { leaveLast(); c.wg.Wait() })
	conn := connect(t, "lb:///orders", resolver.NewBuilder(c.reg, balanced(balancer.Config{})),
		grpc.WithContextDialer(c.dial), grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10))
	reaches(t, conn, 1)
	l := (&load{conn: conn, timeout: 20 * time.Second, pause: time.Millisecond}).begin(t, 2)
	eventually(t, 20*time.Second, func() error { return moreThan(l, 500) })
	heap0, goroutines0 := usage()

	leave := c.come(1, many-1)
	t.Cleanup(leave)
	eventually(t, time.Minute, func() error { return connected(many, "10.0.0.1:80") })
	eventually(t, time.Minute, func() error { return answered(l, many) })
	heap1, goroutines1 := usage()

	leave()
	eventually(t, time.Minute, func() error { return connected(1, "10.0.0.1:80") })
	at := l.count()
	eventually(t, time.Minute, func() error { return moreThan(l, at+500) })
	// Four fifths, because the runtime never frees what it needs to know about a goroutine, and there were thousands.
	var heap2 uint64
	var goroutines2 int
	eventually(t, 30*time.Second, func() error {
		heap2, goroutines2 = usage()
		if heap2 > heap0+(heap1-heap0)/5 || goroutines2 > goroutines0+20 {
			return fmt.Errorf("heap %d KiB, %d goroutines; with one instance %d KiB, %d; with %d instances %d KiB, %d",
				heap2>>10, goroutines2, heap0>>10, goroutines0, many, heap1>>10, goroutines1)
		}
		return nil
	})
	l.end()
	t.Logf("heap %d KiB, then %d, then %d; goroutines %d, then %d, then %d", heap0>>10, heap1>>10, heap2>>10,
		goroutines0, goroutines1, goroutines2)
	t.Log(l.report())
	if n := len(l.failures()); n > 0 {
		t.Errorf("%d calls failed, want 0", n)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, err := range c.failed {
		t.Error(err)
	}
}
