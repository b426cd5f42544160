package filters

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// live counts the entries whose string has the prefix.
func live(prefix string) (n int) {
	interned.Range(func(k, _ any) bool {
		if strings.HasPrefix(k.(string), prefix) {
			n++
		}
		return true
	})
	return n
}

// collect runs the collector until done says so, or for 10 s.
func collect(done func() bool) bool {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if runtime.GC(); done() {
			return true
		}
		runtime.Gosched() // cleanups run on a goroutine of the runtime's
	}
	return false
}

func TestFiltersAreCollected(t *testing.T) {
	kept := MustParse("leak=kept,prefer(leak=kept1)")
	for i := range 2000 {
		f := MustParse(fmt.Sprintf("leak=a%d,prefer(leak=b%d; leak=c%d)", i, i, i))
		g := MustParse(fmt.Sprintf("prefer(leak=b%d; leak=c%d),leak=a%d", i, i, i))
		if f != g || f.Tiers()[0] != g.Tiers()[0] {
			t.Fatalf("%q and %q are two filters", f, g)
		}
		if i == 1000 && live("leak=") < 2 {
			t.Error("no filter in the table: this test sees nothing")
		}
	}
	// kept, and its tiers leak=kept,leak=kept1 and leak=kept.
	if !collect(func() bool { return live("leak=") <= 3 }) {
		t.Errorf("%d filters are in the table that nobody holds", live("leak=")-3)
	}
	if n := live("leak="); n != 3 {
		t.Errorf("%d filters are left, want the 3 that are held", n)
	}
	if MustParse("leak=kept,prefer(leak=kept1)") != kept {
		t.Error("a filter that was held has changed its identity")
	}
	runtime.KeepAlive(kept)
}

// TestIdentityUnderCollection has goroutines make, compare and drop the same few filters while the collector takes
// them away: two that are alive at once must be one.
func TestIdentityUnderCollection(t *testing.T) {
	stop := make(chan struct{})
	var collector, makers sync.WaitGroup
	collector.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	})
	for g := range 4 {
		makers.Go(func() {
			for i := range 1000 {
				v := fmt.Sprint((i + g) % 3)
				x := All(Label("race", v), Prefer(HasLabel("other"+v)))
				y := MustParse("prefer( other" + v + " ),race=" + v)
				if x != y || x.Tiers()[1] != Label("race", v) || y.Tiers()[0] != MustParse("other"+v+",race="+v) {
					t.Errorf("%q (%p) and %q (%p) are two filters", x, x.n, y, y.n)
					return
				}
			}
		})
	}
	makers.Wait()
	close(stop)
	collector.Wait()
}

// TestOneFilterForAll has goroutines make the same filter at the same moment.
func TestOneFilterForAll(t *testing.T) {
	for i := range 200 {
		var made [8]Filter
		var wg sync.WaitGroup
		start := make(chan struct{})
		for g := range made {
			wg.Go(func() {
				<-start
				made[g] = MustParse(fmt.Sprintf("once=%d,any(b;a)", i))
			})
		}
		close(start)
		wg.Wait()
		for _, f := range made {
			if f != made[0] {
				t.Fatalf("%q is two filters", f)
			}
		}
	}
}

func TestPartsAreNotFilters(t *testing.T) {
	// The part of a filter becomes a filter of its own: with tiers, and one with what the text makes.
	if f := Not(Not(MustParse("any(part=1; part=2)"))); f != MustParse("any(part=1;part=2)") || f.Tiers()[0] != f {
		t.Errorf("%q with the tiers %q", f, f.Tiers())
	}
}
