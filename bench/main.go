package bench

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
)

// benchTime is how long each benchmark runs if nobody says otherwise. A hundred milliseconds are a million picks;
// with go test's second, the whole would take half an hour.
const benchTime = "100ms"

// Main runs the tests and benchmarks of a package with this package's habits, and returns the exit status: a
// benchmark takes 100 ms unless -benchtime says otherwise, evenkeel does not log (its ejections are on purpose here),
// and the raw output begins with the facts that its reader has to know, as lines "key: value". Call it from TestMain,
// in a package below the repository's root. modules are those whose versions the reader has to know besides grpc-go's.
func Main(m *testing.M, modules ...string) int {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.benchtime" })
	if !given {
		if err := flag.Set("test.benchtime", benchTime); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
	}
	if flag.Lookup("test.bench").Value.String() != "" {
		slog.SetDefault(slog.New(slog.DiscardHandler))
		describe(modules)
	}
	return m.Run()
}

func describe(modules []string) {
	dir, id := repository()
	fmt.Printf("date: %s\n", time.Now().UTC().Format("2006-01-02 15:04 UTC"))
	fmt.Printf("commit: %s\n", id)
	fmt.Printf("go: %s\n", runtime.Version())
	fmt.Printf("grpc: v%s\n", grpc.Version)
	if v := versions(modules); v != "" {
		fmt.Printf("versions: %s\n", v)
	}
	fmt.Printf("cores: %d\n", runtime.NumCPU())
	if load, err := os.ReadFile("/proc/loadavg"); err == nil { // only Linux has it
		fmt.Printf("load: %s before the run, of the whole machine\n", strings.Fields(string(load) + " ?")[0])
	}
	fmt.Printf("command: go test %s, in %s\n", strings.Join(arguments(), " "), dir)
}

// versions are those that were linked.
func versions(modules []string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	var out []string
	for _, d := range info.Deps {
		if slices.Contains(modules, d.Path) {
			out = append(out, d.Path+" "+d.Version)
		}
	}
	return strings.Join(out, ", ")
}

// arguments are the flags as one would give them to go test.
func arguments() []string {
	var out []string
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "-tags" {
				out = append(out, "-tags "+s.Value)
			}
		}
	}
	for _, f := range []string{"run", "bench", "benchtime", "count", "cpu"} {
		v := flag.Lookup("test." + f).Value.String()
		if v == "" || f == "count" && v == "1" || f == "benchtime" && v == benchTime {
			continue
		}
		out = append(out, fmt.Sprintf("-%s '%s'", f, v))
	}
	return append(out, ".")
}

// repository says in which directory of the repository this runs, and which commit is measured; it says so if what is
// measured differs from that commit.
func repository() (dir, id string) {
	dir, id = "an unknown directory", "unknown"
	top, err := exec.Command("git", "rev-parse", "--show-toplevel", "--short=12", "HEAD").Output()
	if err != nil {
		return dir, id
	}
	lines := strings.Fields(string(top))
	if len(lines) != 2 {
		return dir, id
	}
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(lines[0], wd); err == nil {
			dir = filepath.ToSlash(rel)
		}
	}
	id = lines[1]
	changed, err := exec.Command("git", "status", "--porcelain", "--", ":/go.mod", ":/balancer", ":/filters",
		":/outcome", ":/registry", ":/resolver", ":/wrappers", ":/internal", ":(top,glob)bench/*.go", ":/bench/peers").Output()
	if err != nil || len(changed) > 0 {
		id += " with local changes"
	}
	return dir, id
}
