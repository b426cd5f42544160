package bench

import (
	"fmt"
	"math"
	"testing"

	"google.golang.org/grpc"

	"github.com/evenkeel/evenkeel/internal/leak"
)

// TestWrapperAllocs is the budget of the wrappers around a call that succeeds. One allocation is retry's record of the
// attempt, one is gobreaker's function that ends a call.
func TestWrapperAllocs(t *testing.T) {
	for _, c := range []Context{{}, {Deadline: true}} {
		w := EvenkeelWrappers()
		for _, row := range []struct {
			name  string
			chain []grpc.UnaryClientInterceptor
			want  float64
		}{
			{"trace", []grpc.UnaryClientInterceptor{w.Trace}, 0},
			{"ratelimit", []grpc.UnaryClientInterceptor{w.RateLimit}, 0},
			{"retry", []grpc.UnaryClientInterceptor{w.Retry}, 1},
			{"breaker", []grpc.UnaryClientInterceptor{w.Breaker}, 1},
			{"retry, breaker and ratelimit", []grpc.UnaryClientInterceptor{w.RateLimit, w.Retry, w.Breaker}, 2},
			{"all four", w.All(), 2},
			{"nothing", nil, 0},
		} {
			if got := Around(row.chain...).Allocs(t, c); got > row.want+Stray {
				t.Errorf("%s, %v: %v allocations a call, want at most %v", row.name, c, got, row.want)
			}
		}
	}
}

// wholeBudget is how many allocations a call with everything may have more than one with nothing: retry's record of the
// attempt, gobreaker's function that ends a call, and grpc-go's copy of the trailer, which retry asks for because a
// server may forbid a retry there.
const wholeBudget = 3

// TestWholeAllocs makes calls over loopback, and counts. Under the race detector pools forget on purpose, so there it
// only makes the calls.
func TestWholeAllocs(t *testing.T) {
	leak.Check(t)
	w, err := NewWhole()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, c := range []Context{{}, {Deadline: true}} {
		for _, row := range []struct {
			s        Stack
			min, max float64
		}{{Plain(), -1, 1}, {Full(), 1, wholeBudget}} { // fewer than one is not possible: retry has a record
			got, err := w.More(row.s, c)
			if err != nil {
				t.Fatal(err)
			}
			if got := math.Round(got); !raceDetector && (got < row.min || got > row.max) {
				t.Errorf("%s, %v: %v allocations a call more than plain, want %v to %v", row.s.Label, c, got, row.min, row.max)
			}
		}
	}
}

// TestWholeFilter makes sure that a stack whose filter does not work is found out.
func TestWholeFilter(t *testing.T) {
	leak.Check(t)
	w, err := NewWhole()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	s := Full()
	s.Bind = nil
	if _, err := w.More(s, Context{}); err == nil {
		t.Error("no error for a stack that calls the server that its filter is to leave out, want one")
	} else {
		t.Log(err)
	}
}

// TestInTurns checks that both are called equally often, and that times come out.
func TestInTurns(t *testing.T) {
	leak.Check(t)
	w, err := NewWhole()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	c, err := w.dial(Full())
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	served := func() (n uint64) {
		for i := range w.calls {
			n += w.calls[i].Load()
		}
		return n
	}
	before := served()
	const pairs = 3
	mine, plain, err := w.inTurns(c, Context{}, pairs)
	if err != nil || mine <= 0 || plain <= 0 {
		t.Errorf("medians %v and %v, error %v, want times", mine, plain, err)
	}
	if got := served() - before; got != 2*pairs*blockCalls {
		t.Errorf("%d calls, want %d", got, 2*pairs*blockCalls)
	}
}

// A stack of another library is compared in the same way.
func ExampleWhole_More() {
	w, err := NewWhole()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer w.Close()
	more, err := w.More(Stack{Label: "a second plain one", Dial: PlainDial()}, Context{})
	fmt.Println("allocates more:", more > 1, err)
	// Output: allocates more: false <nil>
}
