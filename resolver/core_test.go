package resolver

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/registry"
)

// parse reads a set: "a" is the instance a at a:1, "b@a" is b at a:1, "a!" is draining, "a?" is malformed, and
// "a#3" has weight 3.
func parse(set string) []registry.Instance {
	var list []registry.Instance
	for _, w := range strings.Fields(set) {
		var in registry.Instance
		w, in.Draining = strings.CutSuffix(w, "!")
		w, bad := strings.CutSuffix(w, "?")
		if name, weight, ok := strings.Cut(w, "#"); ok {
			w = name
			fmt.Sscan(weight, &in.Weight)
		}
		id, host, moved := strings.Cut(w, "@")
		if !moved {
			host = id
		}
		in.ID, in.Addr = id, host+":1"
		if bad {
			in.Labels = map[string]string{"a space": ""}
		}
		list = append(list, in)
	}
	return list
}

// show is the inverse of parse.
func show(list []*registry.Instance) string {
	words := make([]string, len(list))
	for i, in := range list {
		words[i] = in.ID
		if host := strings.TrimSuffix(in.Addr, ":1"); host != in.ID {
			words[i] += "@" + host
		}
		if in.Weight > 1 {
			words[i] += fmt.Sprint("#", in.Weight)
		}
		if in.Draining {
			words[i] += "!"
		}
	}
	return strings.Join(words, " ")
}

var shortNotes = map[string]string{
	msgOutage: "outage", msgNothing: "nothing", msgBack: "back", msgCollapse: "collapse", msgHoldOver: "over", msgSkipped: "skipped",
}

// rig drives a core as the shell does: it ticks when the core asks for it, and keeps what was published.
type rig struct {
	t       *testing.T
	c       core
	now     time.Duration
	shown   string // as published last; "-" if nothing was
	list    []*registry.Instance
	notes   []string
	watches int
	running bool
}

func newRig(t *testing.T, hold time.Duration) *rig {
	return &rig{t: t, c: core{hold: hold, rand: func() float64 { return 0.5 }}, shown: "-"}
}

func (r *rig) view() (string, []*registry.Instance) {
	list, err, ok := r.c.view()
	switch {
	case !ok:
		return "-", nil
	case err != nil:
		return "error: " + err.Error(), nil
	case len(list) == 0:
		return "none", list
	}
	return show(list), list
}

// apply checks that publish is said exactly when there is something new to see.
func (r *rig) apply(e effects) {
	r.t.Helper()
	s, list := r.view()
	if s != "-" {
		if differs := s != r.shown || !slices.Equal(list, r.list); differs != e.publish {
			r.t.Errorf("at %v: publish = %v, but the view went from %q to %q", r.now, e.publish, r.shown, s)
		}
	} else if e.publish {
		r.t.Errorf("at %v: publish with nothing to say", r.now)
	}
	if e.publish {
		r.shown, r.list = s, list
	}
	if e.watch {
		r.watches++
	}
	for _, n := range e.notes {
		r.notes = append(r.notes, shortNotes[n.msg])
	}
	held := 0
	for _, x := range r.c.served {
		if x.held {
			held++
		}
	}
	if held != r.c.held {
		r.t.Errorf("at %v: held = %d, want %d", r.now, r.c.held, held)
	}
}

// until lets time pass, and ticks on the way whenever the core wants it.
func (r *rig) until(at time.Duration) {
	r.t.Helper()
	for n := 0; r.running; n++ {
		d, ok := r.c.next()
		due := time.Duration(r.c.now) + d // the shell starts its timer when an event is done
		if !ok || due > at {
			break
		}
		if n > 1000 {
			r.t.Fatalf("at %v: the core asks for tick after tick", r.now)
		}
		r.now = due
		r.apply(r.c.tick(int64(r.now)))
	}
	r.now = at
}

func (r *rig) do(event string) {
	r.t.Helper()
	verb, arg, _ := strings.Cut(event, " ")
	switch verb {
	case "start": // of a new run: its connections have been given nothing
		r.shown, r.list, r.running = "-", nil, true
		r.apply(r.c.start(int64(r.now)))
	case "set":
		r.apply(r.c.update(int64(r.now), parse(arg)))
	case "fail":
		r.apply(r.c.ended(int64(r.now), errors.New(arg)))
	case "nudge":
		r.apply(r.c.nudge(int64(r.now)))
	case "wait":
	case "stop": // the last connection closed
		r.running = false
	default:
		r.t.Fatalf("unknown event %q", event)
	}
}

type step struct {
	at    time.Duration
	event string // start, set ..., fail REASON, nudge, wait, stop
	want  string // what is served: "-" nothing said, "none" an empty set, "error: ..."
	notes string // what the log got since the last step
}

const s = time.Second

var scenarios = []struct {
	name  string
	hold  time.Duration
	steps []step
}{
	{"updates replace each other, in a stable order", 30 * s, []step{
		{0, "start", "-", ""},
		{1 * s, "set b a", "b a", ""},
		{2 * s, "set a b c", "b a c", ""},
		{3 * s, "set c b", "b c", ""},
		{40 * s, "set c b#3 a", "b#3 c a", ""},
		{41 * s, "set c b#3 a", "b#3 c a", ""},
	}},
	{"an empty set of a healthy registry is passed on", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set", "none", ""},
		{1 * s, "set", "none", ""},
		{2 * s, "set a", "a", ""},
	}},
	{"all gone at once: held, then believed", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b c", "a b c", ""},
		{5 * s, "set", "a b c", "collapse"},
		{35*s - 1, "wait", "a b c", ""},
		{35 * s, "wait", "none", "over"},
		{36 * s, "set a", "a", ""},
	}},
	{"a single instance is more than half", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a", "a", ""},
		{5 * s, "set", "a", "collapse"},
		{6 * s, "set a", "a", "over"},
		{60 * s, "wait", "a", ""},
	}},
	{"half is not more than half", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b c d", "a b c d", ""},
		{5 * s, "set a b", "a b", ""},
	}},
	{"a restarted registry reports 0 1 2 3 5 of 5", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b c d e", "a b c d e", ""},
		{60 * s, "set", "a b c d e", "collapse"},
		{61 * s, "set a", "a b c d e", ""},
		{62 * s, "set b a", "a b c d e", ""},
		{63 * s, "set b a c", "a b c d e", ""},
		{64 * s, "set a b c d e", "a b c d e", "over"},
		{200 * s, "wait", "a b c d e", ""},
	}},
	{"some return, the others are let go when their hold ends", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b c d e", "a b c d e", ""},
		{60 * s, "set e", "a b c d e", "collapse"},
		{70 * s, "set b e", "a b c d e", ""},
		{90 * s, "wait", "b e", "over"},
	}},
	{"draining instances go at once, and are no collapse", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b c d", "a b c d", ""},
		{5 * s, "set a! b! c! d", "a! b! c! d", ""},
		{6 * s, "set d", "d", ""},
	}},
	{"in a collapse too, a draining instance goes at once", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a! b c d", "a! b c d", ""},
		{5 * s, "set", "b c d", "collapse"},
		{6 * s, "set b!", "b! c d", ""},
		{7 * s, "set", "c d", ""},
		{35 * s, "wait", "none", "over"},
	}},
	{"draining instances that stay do not hide a collapse", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a! b! c! d e", "a! b! c! d e", ""},
		{5 * s, "set a! b! c!", "a! b! c! d e", "collapse"},
	}},
	{"erosion: one by one within the hold, half of them goes", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b c d e f", "a b c d e f", ""},
		{1 * s, "set a b c d e", "a b c d e", ""},
		{2 * s, "set a b c d", "a b c d", ""},
		{3 * s, "set a b c", "a b c", ""},
		{4 * s, "set a b", "a b c", "collapse"},
		{5 * s, "set a", "a b c", ""},
		{6 * s, "set", "a b c", ""},
		{34 * s, "wait", "a b", ""},
		{36 * s, "wait", "none", "over"},
	}},
	{"one by one, slower than the hold: each is believed", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b c d", "a b c d", ""},
		{31 * s, "set a b c", "a b c", ""},
		{62 * s, "set a b", "a b", ""},
		{93 * s, "set a", "a", ""},
	}},
	{"who left and came back does not count as gone", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b c d", "a b c d", ""},
		{1 * s, "set a b c", "a b c", ""},
		{2 * s, "set a b c d", "a b c d", ""},
		{3 * s, "set a b d", "a b d", ""},
		{4 * s, "set a b c d", "a b d c", ""},
		{5 * s, "set b c d", "b d c", ""},
	}},
	{"unannounced replacement one by one", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b c d", "a b c d", ""},
		{1 * s, "set a b c d e", "a b c d e", ""},
		{2 * s, "set b c d e", "b c d e", ""},
		{3 * s, "set b c d e f", "b c d e f", ""},
		{4 * s, "set c d e f", "c d e f", ""},
		{5 * s, "set c d e f g", "c d e f g", ""},
		{6 * s, "set d e f g", "d e f g", ""},
	}},
	{"a new ID at a held address takes its place", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b c", "a b c", ""},
		{1 * s, "set", "a b c", "collapse"},
		{2 * s, "set x@b", "a x@b c", ""},
		{31 * s, "wait", "x@b", "over"},
	}},
	{"an ID at a new address has left the old one", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b", "a b", ""},
		{1 * s, "set a@x b@y", "a@x b@y", ""},
		{2 * s, "set", "a@x b@y", "collapse"},
		{3 * s, "set a@p b@q", "a@p b@q", "over"},
	}},
	{"of two records with one address the later wins", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b x@a", "x@a b", ""},
	}},
	{"a malformed record hides no other, and is told once", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b? c", "a c", "skipped"},
		{1 * s, "set a b? c", "a c", ""},
		{2 * s, "set a b? c d?", "a c", "skipped"},
		{3 * s, "set a b c", "a c b", ""},
		{4 * s, "set a b? c", "a c", "skipped"},
	}},
	{"all malformed at once is a collapse as well", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b c", "a b c", ""},
		{1 * s, "set a? b? c?", "a b c", "skipped collapse"},
	}},
	{"an outage keeps the last set, told once", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b", "a b", ""},
		{60 * s, "fail refused", "a b", "outage"},
		{61 * s, "fail refused", "a b", ""},
		{62 * s, "fail timeout", "a b", ""},
		{900 * s, "wait", "a b", ""},
		{900 * s, "set a b c", "a b c", "back"},
	}},
	{"an outage with nothing to serve is told to the app, each reason once", 30 * s, []step{
		{0, "start", "-", ""},
		{1 * s, "fail refused", "error: refused", "nothing"},
		{2 * s, "fail refused", "error: refused", ""},
		{3 * s, "fail timeout", "error: timeout", ""},
		{4 * s, "set", "none", "back"},
		{5 * s, "fail refused", "error: refused", "nothing"},
		{6 * s, "set a", "a", "back"},
	}},
	{"a registry that says nothing is told to the app too", 30 * s, []step{
		{0, "start", "-", ""},
		{5*s - 1, "wait", "-", ""},
		{5 * s, "wait", "error: silent for 5s", "nothing"},
		{60 * s, "wait", "error: silent for 5s", ""},
		{61 * s, "fail timeout", "error: timeout", ""},
		{62 * s, "set a", "a", "back"},
	}},
	{"the first update after an outage is judged too", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b c", "a b c", ""},
		{60 * s, "fail refused", "a b c", "outage"},
		{90 * s, "set", "a b c", "back collapse"},
		{100 * s, "set a b c", "a b c", "over"},
	}},
	{"a hold does not end while the registry is out, and begins anew when it is back", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b c", "a b c", ""},
		{10 * s, "set", "a b c", "collapse"},
		{11 * s, "fail refused", "a b c", "outage"},
		{50 * s, "fail refused", "a b c", ""},
		{100 * s, "wait", "a b c", ""},
		{100 * s, "set c", "a b c", "back"},
		{130*s - 1, "wait", "a b c", ""},
		{130 * s, "wait", "c", "over"},
	}},
	{"a negative hold believes everything", -1, []step{
		{0, "start", "-", ""},
		{0, "set a b c", "a b c", ""},
		{1 * s, "set", "none", ""},
		{2 * s, "set a b c", "a b c", ""},
		{3 * s, "set a", "a", ""},
	}},
	{"a new start waits for news before it shows what it remembers", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b", "a b", ""},
		{3600 * s, "start", "-", ""},
		{3600*s + 100*time.Millisecond, "set a b c", "a b c", ""},
	}},
	{"a new start after everybody was replaced", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b c", "a b c", ""},
		{3600 * s, "start", "-", ""},
		{3600 * s, "set x", "x", ""}, // nobody was there to see a, b and c say that they leave
		{3601 * s, "set", "x", "collapse"},
	}},
	{"a new start with an empty registry", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b c", "a b c", ""},
		{3600 * s, "start", "-", ""},
		{3600 * s, "set", "a b c", "collapse"},
		{3601 * s, "set a", "a b c", ""},
		{3630 * s, "wait", "a", "over"},
	}},
	{"a new start with a silent registry", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b", "a b", ""},
		{3600 * s, "start", "-", ""},
		{3600*s + headStart - 1, "wait", "-", ""},
		{3600*s + headStart, "wait", "a b", ""},
		{3700 * s, "wait", "a b", ""},
		{3700 * s, "set a b", "a b", ""},
	}},
	{"a new start with the registry down", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b", "a b", ""},
		{3600 * s, "start", "-", ""},
		{3600*s + 1, "fail refused", "a b", "outage"},
	}},
	{"a new start in the middle of a hold", 30 * s, []step{
		{0, "start", "-", ""},
		{0, "set a b", "a b", ""},
		{5 * s, "set", "a b", "collapse"},
		{6 * s, "stop", "a b", ""},
		{3600 * s, "start", "-", ""},
		{3600 * s, "set", "a b", ""},
		{3630 * s, "wait", "none", "over"},
	}},
	{"the clock goes backwards", 30 * s, []step{
		{100 * s, "start", "-", ""},
		{100 * s, "set a b c", "a b c", ""},
		{110 * s, "set a", "a b c", "collapse"},
		{20 * s, "set", "a b c", ""},
		{60 * s, "wait", "a b c", ""}, // the hold is not over before the clock is where it was, and 30 s further
		{139 * s, "set", "a b c", ""},
		{140 * s, "set", "none", "over"},
	}},
}

func TestScenarios(t *testing.T) {
	for _, sc := range scenarios {
		t.Run(sc.name, func(t *testing.T) {
			r := newRig(t, sc.hold)
			for i, st := range sc.steps {
				if st.at < r.now {
					r.now = st.at // the clock goes backwards; no tick comes due by that
				} else {
					r.until(st.at)
				}
				r.do(st.event)
				if got, _ := r.view(); got != st.want {
					t.Errorf("step %d, at %v, %q: served %q, want %q", i, st.at, st.event, got, st.want)
				}
				if got := strings.Join(r.notes, " "); got != st.notes {
					t.Errorf("step %d, at %v, %q: notes %q, want %q", i, st.at, st.event, got, st.notes)
				}
				r.notes = nil
			}
		})
	}
}

func TestBackoff(t *testing.T) {
	ms := time.Millisecond
	for _, tc := range []struct {
		name  string
		lives []time.Duration // how long each watch lives; negative: without an update
		want  []time.Duration // the wait after it, with every random number 0.5
	}{
		{"doubles up to 10 s", []time.Duration{-1, -1, -1, -1, -1, -1, -1, -1, -1},
			[]time.Duration{50 * ms, 100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 5 * s, 5 * s}},
		{"starts anew after a watch that lasted", []time.Duration{-1, -1, -1, 60 * s, -1},
			[]time.Duration{50 * ms, 100 * ms, 200 * ms, 50 * ms, 100 * ms}},
		{"a long watch without an update proves nothing", []time.Duration{-1, -1, -60 * s, -1},
			[]time.Duration{50 * ms, 100 * ms, 200 * ms, 400 * ms}},
		{"nor does an update with the watch lost at once", []time.Duration{1 * ms, 1 * ms, 1 * ms, 1 * ms, 1 * ms},
			[]time.Duration{50 * ms, 100 * ms, 200 * ms, 400 * ms, 800 * ms}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, 30*s)
			r.do("start")
			for i, life := range tc.lives {
				r.now += max(life, -life)
				if life > 0 {
					r.apply(r.c.update(int64(r.now-life), parse("a")))
				}
				r.do("fail refused")
				before := r.watches
				r.until(r.now + tc.want[i] - 1)
				if r.watches != before {
					t.Fatalf("watch %d: began again before %v", i, tc.want[i])
				}
				r.until(r.now + 1)
				if r.watches != before+1 {
					t.Fatalf("watch %d: did not begin again after %v", i, tc.want[i])
				}
			}
		})
	}
}

// The jitter is full: any wait from 0 to the ceiling, none beyond.
func TestBackoffIsJittered(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for attempt := range 12 {
		bins := make([]int, 10)
		const draws = 2000
		for range draws {
			c := core{rand: rnd.Float64, attempt: attempt, watching: true}
			c.ended(0, errors.New("x"))
			bin := int(time.Duration(c.retryAt) * 10 / ceiling(attempt))
			if bin < 0 || bin > 9 {
				t.Fatalf("attempt %d: waits %v, want less than %v", attempt, time.Duration(c.retryAt), ceiling(attempt))
			}
			bins[bin]++
		}
		chi := 0.0
		for _, n := range bins {
			d := float64(n - draws/10)
			chi += d * d / (draws / 10)
		}
		if chi > 33.7 { // chi-square, 9 degrees of freedom, p = 0.0001
			t.Errorf("attempt %d: chi-square = %.1f, want at most 33.7: %v", attempt, chi, bins)
		}
	}
	if got := ceiling(0); got != backoffMin {
		t.Errorf("ceiling(0) = %v, want %v", got, backoffMin)
	}
	if got := ceiling(math.MaxInt); got != backoffMax {
		t.Errorf("ceiling of many = %v, want %v", got, backoffMax)
	}
}

func TestNudgeBringsTheNextWatchForwardOnce(t *testing.T) {
	r := newRig(t, 30*s)
	r.do("start")
	r.do("nudge") // a watch runs: nothing to bring forward
	for range 9 { // the next wait is 5 s
		r.do("fail refused")
		r.until(time.Duration(r.c.retryAt))
	}
	r.do("fail refused")
	from, before := r.now, r.watches
	r.until(from + 1*s)
	r.do("nudge")
	r.until(from + 1400*time.Millisecond)
	r.c.rand = func() float64 { return 0.01 }
	r.do("nudge") // a second one draws no second time, or a storm of them would come down to no wait at all
	r.until(from + 1500*time.Millisecond - 1)
	if r.watches != before {
		t.Fatal("began again before the nudge's half second had passed")
	}
	r.until(from + 1500*time.Millisecond)
	if r.watches != before+1 {
		t.Fatal("did not begin again half a second after the nudge")
	}
}

// An instance that stays must not keep those alive that came with it, nor may the core keep those that went.
func TestMemoryReturns(t *testing.T) {
	r := newRig(t, 30*s)
	r.do("start")
	var many []string
	for i := range 1000 {
		many = append(many, fmt.Sprint("i", i))
	}
	set := parse(strings.Join(many, " "))
	r.apply(r.c.update(0, set))
	first := r.c.served[0].in
	for i := range set {
		if first == &set[i] {
			t.Error("an instance lives in the slice that the registry gave")
		}
	}
	r.now = 1 * s
	r.do("set i0")
	if got := len(r.c.served); got != 1000 {
		t.Fatalf("%d served during the hold, want 1000", got)
	}
	r.until(40 * s)
	if got := len(r.c.served); got != 1 {
		t.Fatalf("%d served after the hold, want 1", got)
	}
	if got := cap(r.c.served); got > 10 {
		t.Errorf("room for %d, want it to have returned", got)
	}
	if got := reflect.ValueOf(r.c.bad).Len() + len(r.c.left); got != 0 {
		t.Errorf("%d leftovers, want none", got)
	}
}
