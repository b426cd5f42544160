package e2e

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/internal/greeter"
	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/consul"
	"github.com/evenkeel/evenkeel/resolver"
)

// dial connects to the service "orders" of a registry.
func dial(t *testing.T, w registry.Watcher, c balancer.Config, opts ...resolver.Option) *grpc.ClientConn {
	t.Helper()
	opts = append(opts, resolver.WithServiceConfig(balancer.ServiceConfig(c)))
	conn, err := grpc.NewClient("lb:///orders",
		grpc.WithResolvers(resolver.NewBuilder(w, opts...)),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableRetry(), // no call is retried, but for those that never left this process
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// dialOne connects to one address, without evenkeel.
func dialOne(t *testing.T, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func watcher(t *testing.T, c consul.Config) *consul.Registry {
	t.Helper()
	reg, err := consul.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reg.Close() })
	return reg
}

// load is a steady stream of calls from several callers.
type load struct {
	conn    *grpc.ClientConn
	timeout time.Duration // of each call
	pause   time.Duration // between two calls of one caller
	ctx     func(context.Context) context.Context

	stop context.CancelFunc
	done sync.WaitGroup

	mu     sync.Mutex
	calls  int
	by     map[string]int // by the instance that answered
	failed []failure
}

// failure is a call that failed.
type failure struct {
	began, ended time.Time
	err          error
}

// begin starts n callers, which call until end.
func (l *load) begin(t *testing.T, n int) *load {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	l.stop, l.by = stop, make(map[string]int)
	t.Cleanup(func() { stop(); l.done.Wait() })
	for range n {
		l.done.Add(1)
		go l.caller(ctx)
	}
	return l
}

func (l *load) caller(ctx context.Context) {
	defer l.done.Done()
	tick := time.NewTicker(max(l.pause, time.Microsecond))
	defer tick.Stop()
	for ctx.Err() == nil {
		l.call(ctx)
		if l.pause > 0 {
			<-tick.C
		}
	}
}

func (l *load) call(ctx context.Context) {
	began := time.Now()
	callCtx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	if l.ctx != nil {
		callCtx = l.ctx(callCtx)
	}
	who, err := greeter.Hello(callCtx, l.conn, "you")
	if ctx.Err() != nil {
		return // cut short by the end of the test
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls++
	if err != nil {
		l.failed = append(l.failed, failure{began, time.Now(), err})
		return
	}
	l.by[who]++
}

// end stops the callers and waits for them.
func (l *load) end() *load {
	l.stop()
	l.done.Wait()
	return l
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.calls
}

func (l *load) failures() []failure {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]failure(nil), l.failed...)
}

// served is how many calls an instance has answered.
func (l *load) served(id string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.by[id]
}

// report sums the failures up by status and text.
func (l *load) report() string {
	kinds := make(map[string]int)
	for _, f := range l.failures() {
		s := status.Convert(f.err)
		kinds[fmt.Sprintf("%v: %.160s", s.Code(), s.Message())]++
	}
	lines := make([]string, 0, len(kinds))
	for k, n := range kinds {
		lines = append(lines, fmt.Sprintf("  %6d %s", n, k))
	}
	sort.Strings(lines)
	return fmt.Sprintf("%d calls, %d failed, %d instances answered\n%s", l.count(), len(l.failures()), len(l.by), strings.Join(lines, "\n"))
}

// reaches waits until n instances have answered calls on conn.
func reaches(t *testing.T, conn *grpc.ClientConn, n int) {
	t.Helper()
	seen := make(map[string]bool)
	eventually(t, 30*time.Second, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		who, err := greeter.Hello(ctx, conn, "you", grpc.WaitForReady(true))
		if err != nil {
			return err
		}
		seen[who] = true
		if len(seen) < n {
			return fmt.Errorf("%d of %d instances answered: %v", len(seen), n, seen)
		}
		return nil
	})
}
