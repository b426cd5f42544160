package registrytest

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/memory"
)

// faulty is the in-process registry with hooks through which it is broken. Without hooks it is right.
type faulty struct {
	*memory.Registry
	register func(service string, in registry.Instance) (registry.Registration, error)
	watch    func(ctx context.Context, service string, update func([]registry.Instance)) error
	see      func([]registry.Instance) []registry.Instance // what a watcher gets of what there is
	update   func(*faultyRegistration, registry.Instance) error
	close    func(*faultyRegistration) error
	restart  func()

	mu    sync.Mutex // guards what follows
	all   []*faultyRegistration
	down  bool // in an outage
	alien bool // there is a malformed record
}

type faultyRegistration struct {
	registry.Registration
	f       *faulty
	service string
	first   registry.Instance // as registered
	closed  bool
	updates int
}

func (f *faulty) Register(ctx context.Context, service string, in registry.Instance) (registry.Registration, error) {
	var g registry.Registration
	var err error
	if f.register != nil {
		g, err = f.register(service, in)
	} else {
		g, err = f.Registry.Register(ctx, service, in)
	}
	if err != nil {
		return nil, err
	}
	fg := &faultyRegistration{Registration: g, f: f, service: service, first: in}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, fg)
	return fg, nil
}

func (f *faulty) Watch(ctx context.Context, service string, update func([]registry.Instance)) error {
	if f.see != nil {
		inner := update
		update = func(ins []registry.Instance) { inner(f.see(ins)) }
	}
	if f.watch != nil {
		return f.watch(ctx, service, update)
	}
	return f.Registry.Watch(ctx, service, update)
}

func (g *faultyRegistration) Update(ctx context.Context, in registry.Instance) error {
	g.f.mu.Lock()
	g.updates++
	g.f.mu.Unlock()
	if g.f.update != nil {
		return g.f.update(g, in)
	}
	return g.Registration.Update(ctx, in)
}

func (g *faultyRegistration) Close(ctx context.Context) error {
	if g.f.close != nil {
		return g.f.close(g)
	}
	return g.Registration.Close(ctx)
}

// again puts a record back that nobody asked for.
func (g *faultyRegistration) again() {
	g.f.Registry.PutForeign(g.service, g.first)
}

func (f *faulty) is(flag *bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return *flag
}

func (f *faulty) set(flag *bool, to bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	*flag = to
}

// harness is what the suite is given; spoil breaks each registry it makes.
func harness(spoil func(*faulty), timeout time.Duration) Harness {
	return Harness{
		Timeout: timeout,
		New: func(*testing.T) registry.Registry {
			f := &faulty{Registry: memory.New()}
			spoil(f)
			return f
		},
		PutMalformed: func(_ *testing.T, r registry.Registry, service string) {
			f := r.(*faulty)
			f.set(&f.alien, true)
			f.PutForeign(service, registry.Instance{ID: "foreign", Addr: "no port"})
		},
		Restart: func(_ *testing.T, r registry.Registry) {
			f := r.(*faulty)
			if f.Restart(); f.restart != nil {
				f.restart()
			}
		},
		Outage: func(_ *testing.T, r registry.Registry) func() {
			f := r.(*faulty)
			f.set(&f.down, true)
			f.Fail(nil)
			return func() {
				f.set(&f.down, false)
				f.Recover()
			}
		},
	}
}

func TestSuitePassesARegistryThatIsRight(t *testing.T) {
	Run(t, harness(func(*faulty) {}, 0))
}

// brokenEnv names the way in which TestBroken breaks its registry. Only TestSuiteFailsBrokenRegistries sets it.
const brokenEnv = "REGISTRYTEST_BROKEN"

// TestBroken is meant to fail: in a process of its own, with a registry broken on purpose. Otherwise it does
// nothing.
func TestBroken(t *testing.T) {
	name := os.Getenv(brokenEnv)
	if name == "" {
		return
	}
	i := slices.IndexFunc(breakages, func(b breakage) bool { return b.name == name })
	if i < 0 {
		t.Skipf("%s = %q, want the name of a breakage", brokenEnv, name) // skipped is not failed: the parent notices
	}
	Run(t, harness(breakages[i].spoil, 400*time.Millisecond))
}

func TestSuiteFailsBrokenRegistries(t *testing.T) {
	// The children mostly wait for what does not come, so more of them than t.Parallel allows run at a time.
	results := make([]result, len(breakages))
	slots := make(chan struct{}, 8)
	var wg sync.WaitGroup
	for i, b := range breakages {
		slots <- struct{}{}
		wg.Go(func() {
			results[i] = runBroken(b)
			<-slots
		})
	}
	wg.Wait()
	for i, b := range breakages {
		t.Run(b.name, func(t *testing.T) {
			out := results[i].out
			if results[i].err == nil {
				t.Fatalf("%s passed, want it to fail:\n%s", b.fails, out)
			}
			if !strings.Contains(out, "--- FAIL: TestBroken/"+b.fails+" ") {
				t.Errorf("%s did not fail (%v):\n%s", b.fails, results[i].err, out)
			}
			if !regexp.MustCompile(b.says).MatchString(out) {
				t.Errorf("%s failed without saying %q:\n%s", b.fails, b.says, out)
			}
		})
	}
}

type result struct {
	out string
	err error // nil if the process ended with status 0
}

// runBroken runs the case that has to notice b in a process of its own.
func runBroken(b breakage) result {
	cmd := exec.Command(os.Args[0], "-test.run=^TestBroken$/^"+b.fails+"$", "-test.v", "-test.timeout=60s")
	// The race detector sleeps a second before a process exits, unless told otherwise.
	cmd.Env = append(os.Environ(), brokenEnv+"="+b.name, "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	out, err := cmd.CombinedOutput()
	return result{string(out), err}
}

func TestEveryCaseCanFail(t *testing.T) {
	for _, c := range cases {
		if !slices.ContainsFunc(breakages, func(b breakage) bool { return b.fails == c.name }) {
			t.Errorf("no breakage makes %s fail", c.name)
		}
	}
}
