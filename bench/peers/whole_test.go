package peers

import (
	"fmt"
	"testing"

	"github.com/evenkeel/evenkeel/bench"
)

func stacks() []bench.Stack {
	all := []bench.Stack{bench.Full(), {Label: "failsafe_go", Dial: bench.PlainDial(failsafeAll())}, kratosStack()}
	return append(all, goZeroStacks...)
}

// BenchmarkWhole is the benchmark of package bench with these stacks, and under the same names.
func BenchmarkWhole(b *testing.B) {
	w, err := bench.NewWhole()
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	for _, s := range stacks() {
		c := bench.Context{Deadline: true}
		b.Run(fmt.Sprintf("stack=%s/ctx=%v", s.Label, c), func(b *testing.B) { w.Compare(b, s, c) })
	}
}

// TestStacks makes calls with each.
func TestStacks(t *testing.T) {
	w, err := bench.NewWhole()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, s := range stacks() {
		more, err := w.More(s, bench.Context{})
		if err != nil {
			t.Error(err)
			continue
		}
		t.Logf("%s: %.1f allocations a call more than round_robin alone", s.Label, more)
	}
}
