package main

import (
	"fmt"
	"io"
	"sort"
	"strings"
	"time"

	"github.com/evenkeel/evenkeel/balancer"
)

// screen shows what is going on: a table that is drawn over again on a terminal, plain lines elsewhere.
type screen struct {
	out   io.Writer
	live  bool
	drawn int // lines of the table that stands on the terminal
	last  time.Time
}

func newScreen(out io.Writer, live bool) *screen { return &screen{out: out, live: live} }

// act announces what comes next.
func (s *screen) act(format string, args ...any) {
	s.drawn, s.last = 0, time.Now()
	fmt.Fprintf(s.out, "\n"+format+"\n", args...)
}

// say prints a line below what is there.
func (s *screen) say(format string, args ...any) {
	s.drawn = 0
	fmt.Fprintf(s.out, "  "+format+"\n", args...)
}

// show shows the counts: often on a terminal, once a second in a pipe.
func (s *screen) show(c tally) {
	now := time.Now()
	if !s.live {
		if now.Sub(s.last) >= time.Second {
			s.last = now
			fmt.Fprintf(s.out, "  %s\n", oneLine(c))
		}
		return
	}
	lines := table(c)
	if s.drawn > 0 {
		fmt.Fprintf(s.out, "\x1b[%dA\x1b[J", s.drawn)
	}
	fmt.Fprintln(s.out, strings.Join(lines, "\n"))
	s.drawn = len(lines)
}

func oneLine(c tally) string {
	parts := make([]string, 0, len(c.by))
	for _, id := range ids(c.by) {
		parts = append(parts, fmt.Sprintf("%s %d", id, c.by[id]))
	}
	return fmt.Sprintf("%d calls, %d failed: %s", c.calls, c.failed, strings.Join(parts, ", "))
}

// table has a line for each instance that the client knows.
func table(c tally) []string {
	lines := []string{fmt.Sprintf("  %-12s %-8s %7s %7s %9s  %s", "instance", "track", "answers", "share", "in flight", "state")}
	for _, ch := range balancer.Channels() {
		if ch.Service != "greeter" {
			continue
		}
		for _, e := range ch.Endpoints {
			share := 0.0
			if ok := c.calls - c.failed; ok > 0 {
				share = 100 * float64(c.by[e.Instance.ID]) / float64(ok)
			}
			lines = append(lines, fmt.Sprintf("  %-12s %-8s %7d %6.1f%% %9d  %s", e.Instance.ID, e.Instance.Labels["track"],
				c.by[e.Instance.ID], share, e.InFlight, state(e)))
		}
	}
	return append(lines, fmt.Sprintf("  %d calls, %d failed", c.calls, c.failed))
}

func state(e balancer.EndpointState) string {
	switch {
	case e.Ejected:
		return fmt.Sprintf("blacklisted, %.1f s to go", e.Remaining.Seconds())
	case e.Probing:
		return "on probation"
	case e.Instance.Draining:
		return "draining"
	}
	return strings.ToLower(e.State.String())
}

func ids(m map[string]int) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
