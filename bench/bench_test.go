package bench

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
)

// benchTime is how long each benchmark runs if nobody says otherwise. A hundred milliseconds are a million picks;
// with go test's second, the whole would take half an hour.
const benchTime = "100ms"

func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.benchtime" })
	if !given {
		if err := flag.Set("test.benchtime", benchTime); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
	}
	if flag.Lookup("test.bench").Value.String() != "" {
		slog.SetDefault(slog.New(slog.DiscardHandler)) // the ejections are on purpose, and would stand between the results
		describe()
	}
	os.Exit(m.Run())
}

// describe prints what a reader of the raw output has to know, in the form of benchmark output: "key: value".
func describe() {
	fmt.Printf("date: %s\n", time.Now().UTC().Format("2006-01-02 15:04 UTC"))
	fmt.Printf("commit: %s\n", commit())
	fmt.Printf("go: %s\n", runtime.Version())
	fmt.Printf("grpc: v%s\n", grpc.Version)
	fmt.Printf("cores: %d\n", runtime.GOMAXPROCS(0))
	fmt.Printf("command: go test %s\n", strings.Join(arguments(), " "))
}

// arguments are the flags as one would give them to go test.
func arguments() []string {
	var out []string
	for _, f := range []string{"run", "bench", "benchtime", "count", "cpu"} {
		if v := flag.Lookup("test." + f).Value.String(); v != "" && (f != "count" || v != "1") {
			out = append(out, fmt.Sprintf("-%s '%s'", f, v))
		}
	}
	return append(out, "./bench")
}

// commit is the commit that is measured; it says so if a measured package differs from it.
func commit() string {
	head, err := exec.Command("git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	id := strings.TrimSpace(string(head))
	changed, err := exec.Command("git", "status", "--porcelain", "--", "../go.mod", "../balancer", "../filters",
		"../outcome", "../internal/callctx", "../internal/clock", "../internal/lbtest", ":(glob)*.go").Output()
	if err != nil || len(changed) > 0 {
		id += " with local changes"
	}
	return id
}

// rigs are the worn rigs of one size, made when a benchmark first wants them and kept for its repetitions.
type wornRigs struct {
	n  int
	by map[string]*Rig
}

func (w *wornRigs) of(b *testing.B, p Policy) *Rig {
	b.Helper()
	r := w.by[p.Label]
	if r == nil {
		var err error
		if r, err = NewWorn(p, w.n); err != nil {
			b.Fatal(err)
		}
		w.by[p.Label] = r
	}
	return r
}

func (w *wornRigs) close() {
	for _, r := range w.by {
		r.Close()
	}
}

// BenchmarkPick is what a call pays for being balanced. Policies are the innermost loop, so that those which are
// compared run one right after the other.
func BenchmarkPick(b *testing.B) {
	peers := []Policy{GRPCRoundRobin(), GRPCLeastRequest()}
	for _, n := range []int{3, 100, 1000, 10000} {
		w := &wornRigs{n, make(map[string]*Rig)}
		for _, c := range []Context{{}, {Deadline: true}, {Filtered: true}, {Filtered: true, Deadline: true}} {
			policies := slices.Concat(Strategies(), peers)
			filter := "none"
			if c.Filtered {
				if n < 10 { // nobody is one in ten of three
					continue
				}
				policies, filter = Strategies(), "one_in_ten" // nobody else has filters
			}
			for _, par := range []string{"1", "all"} {
				if c.Deadline && par == "all" {
					continue
				}
				for _, p := range policies {
					name := fmt.Sprintf("policy=%s/n=%d/filter=%s/ctx=%v/par=%s", p.Label, n, filter, c, par)
					b.Run(name, func(b *testing.B) {
						if r := w.of(b, p); par == "all" {
							r.PickParallel(b, c)
						} else {
							r.Pick(b, c)
						}
					})
				}
			}
		}
		w.close()
	}
}

// BenchmarkPickOf64 is BenchmarkPick with a filter while 64 others are in use.
func BenchmarkPickOf64(b *testing.B) {
	const n = 10000
	w := &wornRigs{n, make(map[string]*Rig)}
	defer w.close()
	c := Context{Filtered: true}
	for _, p := range Strategies() {
		b.Run(fmt.Sprintf("policy=%s/n=%d/filter=one_in_ten/ctx=%v/par=1", p.Label, n, c), func(b *testing.B) {
			r := w.of(b, p)
			if err := r.Use(MaxFilters); err != nil {
				b.Fatal(err)
			}
			r.Pick(b, c)
		})
	}
}

// BenchmarkConverge is how long a client needs that starts, or that finds its whole service replaced.
func BenchmarkConverge(b *testing.B) {
	ours := Strategies()[0]
	for _, n := range []int{100, 1000, 4000, 10000} {
		for _, p := range []Policy{ours, GRPCRoundRobin()} {
			if n > 4000 && !p.ours() {
				continue // it would take ten seconds
			}
			b.Run(fmt.Sprintf("policy=%s/n=%d", p.Label, n), func(b *testing.B) { Converge(b, p, n) })
		}
	}
}

// BenchmarkChange is what each change in a large service costs every one of its clients.
func BenchmarkChange(b *testing.B) {
	const n = 10000
	ours := Strategies()[0]
	for _, k := range []Kind{State, Labels} {
		for _, row := range []struct {
			p     Policy
			inUse int
		}{{ours, 0}, {ours, MaxFilters}, {GRPCRoundRobin(), 0}} {
			b.Run(fmt.Sprintf("policy=%s/n=%d/kind=%s/filters=%d", row.p.Label, n, k, row.inUse), func(b *testing.B) {
				Change(b, row.p, n, row.inUse, k)
			})
		}
	}
}

// BenchmarkMemory is what an endpoint costs as long as it is there.
func BenchmarkMemory(b *testing.B) {
	ours := Strategies()[0]
	for _, n := range []int{1000, 10000} {
		for _, row := range []struct {
			p     Policy
			inUse int
		}{{ChannelOnly(), 0}, {PickFirstOnly(), 0}, {GRPCRoundRobin(), 0}, {ours, 0}, {ours, MaxFilters}} {
			b.Run(fmt.Sprintf("policy=%s/n=%d/filters=%d", row.p.Label, n, row.inUse), func(b *testing.B) {
				Memory(b, row.p, n, row.inUse)
			})
		}
	}
}
