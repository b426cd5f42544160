package balancer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/outcome"
)

// steps runs a text of outcomes on a health word: '.' success, 'a' answered, 'F' a failure beyond doubt, '?' a
// doubtful one.
func steps(h health, text string) health {
	for _, c := range text {
		switch c {
		case '.':
			h = h.ok()
		case 'a':
			h = h.answered()
		case 'F':
			h = h.fail(false)
		case '?':
			h = h.fail(true)
		}
	}
	return h
}

func TestHealth(t *testing.T) {
	good := strings.Repeat(".", windowSize)
	for _, tt := range []struct {
		name                        string
		outcomes                    string
		count, failed, run, certain int
		trips                       bool // with 3
	}{
		{"nothing yet", "", 0, 0, 0, 0, false},
		{"two failures", "FF", 2, 2, 2, 2, false},
		{"three failures", "FFF", 3, 3, 3, 3, true},
		{"three doubtful ones, nothing else known", "???", 3, 3, 3, 0, true},
		{"a success ends the run", "FF.FF", 5, 4, 2, 2, false},
		{"an answer does not end the run", "FFaF", 4, 3, 3, 3, true},
		{"an answer speaks against doubtful failures", "aaaa???", 7, 3, 3, 0, false},
		{"as many answers as doubtful failures", "aaa???", 6, 3, 3, 0, true},
		{"certain failures need no second witness", good + "FFF", 20, 3, 3, 3, true},
		{"doubtful ones do", good + "???", 20, 3, 3, 0, false},
		{"nine of the last 20", good + "?????????", 20, 9, 9, 0, false},
		{"ten of the last 20", good + "??????????", 20, 10, 10, 0, true},
		{"the window forgets", "FFF" + good, 20, 0, 0, 0, false},
		{"certain ones among doubtful ones", good + "?F?F?", 20, 5, 5, 2, false},
		{"until there are three of them", good + "?F?F?F", 20, 6, 6, 3, true},
		{"long runs", strings.Repeat("F", 500), 20, 20, 500, 500, true},
		{"the run outgrows nothing", strings.Repeat("F", 70000), 20, 20, 65535, 65535, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := steps(0, tt.outcomes)
			if h.count() != tt.count || h.failed() != tt.failed || h.run() != tt.run || h.certain() != tt.certain {
				t.Errorf("count, failed, run, certain = %d, %d, %d, %d, want %d, %d, %d, %d",
					h.count(), h.failed(), h.run(), h.certain(), tt.count, tt.failed, tt.run, tt.certain)
			}
			if got := h.trips(3); got != tt.trips {
				t.Errorf("trips(3) = %t, want %t", got, tt.trips)
			}
		})
	}
	if h := steps(0, good); h != perfect {
		t.Errorf("20 successes make %x, want perfect, %x", uint64(h), uint64(perfect))
	}
	if h := steps(perfect, ".a."); h != perfect {
		t.Errorf("a success or an answer changes a perfect word to %x", uint64(h))
	}
}

// history is health's twin: all outcomes, looked at one by one.
type history []byte

func (h history) window() history { return h[max(0, len(h)-windowSize):] }

func (h history) failed() int {
	n := 0
	for _, c := range h.window() {
		if c == 'F' || c == '?' {
			n++
		}
	}
	return n
}

// run counts the failures since the last success, all of them and those beyond doubt.
func (h history) run() (all, certain int) {
	for _, c := range slices.Backward(h) {
		switch c {
		case '.':
			return all, certain
		case 'F':
			all, certain = all+1, certain+1
		case '?':
			all++
		}
	}
	return all, certain
}

func (h history) trips(failures int) bool {
	all, certain := h.run()
	return certain >= failures || all >= failures && 2*h.failed() >= len(h.window())
}

func TestHealthAgainstHistory(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for round := range 300 {
		var h health
		var twin history
		// Each round has its own mixture, so that long runs and long good spells both occur.
		mix := strings.Repeat(".", rnd.IntN(9)) + strings.Repeat("a", rnd.IntN(3)) + strings.Repeat("F", rnd.IntN(4)) +
			strings.Repeat("?", 1+rnd.IntN(4))
		for range 200 {
			c := mix[rnd.IntN(len(mix))]
			h, twin = steps(h, string(c)), append(twin, c)
			all, certain := twin.run()
			if h.count() != len(twin.window()) || h.failed() != twin.failed() || h.run() != all || h.certain() != certain {
				t.Fatalf("round %d after %s: count, failed, run, certain = %d, %d, %d, %d, want %d, %d, %d, %d", round, twin,
					h.count(), h.failed(), h.run(), h.certain(), len(twin.window()), twin.failed(), all, certain)
			}
			for _, failures := range []int{1, 2, 3, 5, 25} {
				if h.trips(failures) != twin.trips(failures) {
					t.Fatalf("round %d after %s: trips(%d) = %t, want %t", round, twin, failures, h.trips(failures), !h.trips(failures))
				}
			}
		}
	}
}

func mustResolve(t testing.TB, b Blacklist) judge {
	t.Helper()
	j, err := b.resolve()
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// middle is randomness that makes no jitter.
const middle = uint64(1) << 63

func TestSentence(t *testing.T) {
	const s = int64(time.Second)
	type event struct {
		at   int64 // seconds
		do   string
		want time.Duration // of an ejection
	}
	for _, tt := range []struct {
		name   string
		b      Blacklist
		events []event
	}{
		{"each is longer, up to the bound", Blacklist{}, []event{
			{100, "eject", 30 * time.Second}, {130, "eject", 60 * time.Second}, {190, "eject", 90 * time.Second},
			{280, "eject", 120 * time.Second}, {400, "eject", 150 * time.Second}, {550, "eject", 180 * time.Second},
			{730, "eject", 210 * time.Second}, {940, "eject", 240 * time.Second}, {1180, "eject", 270 * time.Second},
			{1450, "eject", 300 * time.Second}, {1750, "eject", 300 * time.Second},
		}},
		{"a healthy spell takes one step back", Blacklist{}, []event{
			{100, "eject", 30 * time.Second}, {130, "eject", 60 * time.Second}, {190, "clear", 0},
			{219, "eject", 90 * time.Second}, {309, "clear", 0},
			{339, "eject", 90 * time.Second}, // 3 steps up, one back, one up
		}},
		{"a long one takes all of them", Blacklist{}, []event{
			{100, "eject", 30 * time.Second}, {130, "eject", 60 * time.Second}, {190, "clear", 0},
			{1e6, "eject", 30 * time.Second},
		}},
		{"the clock goes backwards", Blacklist{}, []event{
			{100, "eject", 30 * time.Second}, {130, "clear", 0}, {10, "eject", 60 * time.Second}, {5, "eject", 90 * time.Second},
		}},
		{"configured", Blacklist{BaseEjection: 2 * time.Second, MaxEjection: 5 * time.Second}, []event{
			{100, "eject", 2 * time.Second}, {102, "eject", 4 * time.Second}, {106, "eject", 5 * time.Second},
		}},
		{"longer than the default bound", Blacklist{BaseEjection: time.Hour}, []event{
			{100, "eject", time.Hour}, {4000, "eject", time.Hour},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			j := mustResolve(t, tt.b)
			var c sentence
			for i, e := range tt.events {
				now := e.at * s
				if e.do == "clear" {
					c.clear(now)
					if c.due(healthy) != 0 {
						t.Errorf("event %d: something is due for a healthy endpoint", i)
					}
					continue
				}
				if got := c.eject(now, &j, middle); got != e.want {
					t.Errorf("event %d: ejected for %v, want %v", i, got, e.want)
				}
				if got, want := c.due(ejected), now+int64(e.want); got != want {
					t.Errorf("event %d: due at %d, want %d", i, got, want)
				}
				if got := c.due(probing); got != 0 {
					t.Errorf("event %d: due at %d when probing without a call, want never", i, got)
				}
			}
		})
	}
}

func TestSentenceJitter(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	draws := []uint64{0, 1, middle - 1, middle, middle + 1, 1<<64 - 1}
	for range 10000 {
		draws = append(draws, rnd.Uint64())
	}
	for _, b := range []Blacklist{{}, {BaseEjection: time.Nanosecond}, {BaseEjection: 200 * time.Second},
		{BaseEjection: maxEjectionTime, MaxEjection: maxEjectionTime}} {
		j := mustResolve(t, b)
		for level := range 12 {
			full := min(int64(level+1)*(j.base), j.max)
			if int64(level+1) > j.max/j.base {
				full = j.max
			}
			counts := make([]int, 8)
			for _, d := range draws {
				c := sentence{level: level}
				got := int64(c.eject(start, &j, d))
				if got > j.max || got < full-full/10-1 || got > full+full/10+1 || c.until != start+got || c.level != min(level+1, int((j.max+j.base-1)/j.base)) {
					t.Fatalf("%+v level %d draw %x: %v, want within 10 %% of %v and at most %v", b, level, d,
						time.Duration(got), time.Duration(full), time.Duration(j.max))
				}
				if from, width := full-full/10, full/5; full > 1000 && full+full/10 <= j.max {
					counts[min(7, (got-from)*8/width)]++
				}
			}
			if counts[0] > 0 {
				checkUniform(t, fmt.Sprintf("%+v level %d", b, level), counts)
			}
		}
	}
}

func TestAllowed(t *testing.T) {
	for _, tt := range []struct{ percent, n, want int }{
		{50, 1, 0}, {50, 2, 1}, {50, 3, 1}, {50, 4, 2}, {50, 5, 2}, {50, 100, 50},
		{100, 1, 0}, {100, 2, 1}, {100, 10, 9}, {10, 9, 0}, {10, 10, 1}, {1, 99, 0}, {1, 100, 1}, {99, 2, 1},
	} {
		j := mustResolve(t, Blacklist{MaxEjectedPercent: tt.percent})
		if got := j.allowed(tt.n); got != tt.want {
			t.Errorf("%d %% of %d: %d may be out, want %d", tt.percent, tt.n, got, tt.want)
		}
	}
}

func TestBlacklistResolve(t *testing.T) {
	j := mustResolve(t, Blacklist{})
	if j.failures != 3 || j.base != int64(30*time.Second) || j.max != int64(300*time.Second) || j.probe != int64(5*time.Second) ||
		j.percent != 50 || j.disabled || j.classify("", fails(14), outcome.NoDeadline) != outcome.Failure {
		t.Errorf("the defaults are %+v", j)
	}
	for _, tt := range []struct {
		b    Blacklist
		want string
	}{
		{Blacklist{Failures: -1}, "blacklist.failures = -1, want 1 to 1000"},
		{Blacklist{Failures: 1001}, "blacklist.failures = 1001, want 1 to 1000"},
		{Blacklist{BaseEjection: -time.Second}, "blacklist.baseEjection = -1s, want 1ns to 8760h0m0s"},
		{Blacklist{MaxEjection: -time.Second}, "blacklist.maxEjection = -1s, want 1ns to 8760h0m0s"},
		{Blacklist{ProbeTimeout: -1}, "blacklist.probeTimeout = -1ns, want 1ns to 8760h0m0s"},
		{Blacklist{BaseEjection: 9000 * time.Hour}, "blacklist.baseEjection = 9000h0m0s, want 1ns to 8760h0m0s"},
		{Blacklist{BaseEjection: 10 * time.Second, MaxEjection: 9 * time.Second},
			"blacklist.maxEjection = 9s, want at least baseEjection, which is 10s"},
		{Blacklist{MaxEjection: 10 * time.Second}, "blacklist.maxEjection = 10s, want at least baseEjection, which is 30s"},
		{Blacklist{MaxEjectedPercent: -1}, "blacklist.maxEjectedPercent = -1, want 1 to 100"},
		{Blacklist{MaxEjectedPercent: 101}, "blacklist.maxEjectedPercent = 101, want 1 to 100"},
		{Blacklist{Classifier: "nope"}, `blacklist.classifier = "nope", want one of ["default"`},
	} {
		_, err := tt.b.resolve()
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %s", tt.b, err, tt.want)
		}
	}
}
