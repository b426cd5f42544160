package evenkeel_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/evenkeel/evenkeel"

// layers says what the code (not the tests) of each package may import of this module; the first row that matches
// counts. A package without a row is a finding: where it stands is a decision, and it is made here.
var layers = []struct {
	pkg string // a path.Match pattern, or dir/... for a whole tree
	may []string
	why string
}{
	{".", nil, "the root is documentation"},
	{"registry", nil, "everybody meets in registry, so it knows nobody"},
	{"registry/registrytest", []string{"registry", "internal/leak"}, "a suite for every registry knows none of them"},
	{"registry/*", []string{"registry", "internal/clock"}, "registries do not know each other, nor who uses them"},
	{"resolver", []string{"registry", "internal/beacon", "internal/clock"},
		"resolver and server meet only in registry, and any balancer may stand behind the resolver"},
	{"server", []string{"registry", "internal/clock", "internal/estimate", "internal/probe"},
		"resolver and server meet only in registry, and a server that calls nobody links no balancer"},
	{"balancer/load", nil, "load metrics are pure, so that a simulator can run them"},
	{"balancer/outlier", nil, "detectors are pure, so that a simulator can run them"},
	{"balancer", []string{"registry", "filters", "outcome", "balancer/load", "balancer/outlier", "internal/callctx",
		"internal/beacon", "internal/clock", "internal/probe", "internal/strictjson"},
		"any resolver may stand before the balancer, and wrappers are optional"},
	{"filters", []string{"registry", "internal/callctx"}, "a filter is a statement about an instance, nothing more"},
	{"outcome", nil, "the one classifier depends on nobody whom it judges for"},
	{"wrappers", nil, "a chain does not care whose interceptors it joins"},
	{"wrappers/*", []string{"outcome", "internal/callctx", "internal/clock", "internal/scope", "internal/strictjson"},
		"a wrapper works alone, on any client, whatever balances it"},
	{"internal/callctx", nil, "shared by wrappers and pickers, so it knows neither"},
	{"internal/scope", []string{"internal/probe"}, "which policy holds for a method is a question about names"},
	{"internal/estimate", nil, "pure, so that the simulator's servers can run it"},
	{"internal/probe", nil, "shared by the balancer, which probes, and the server, which answers"},
	{"internal/beacon", nil, "shared by resolver and balancer, so it knows neither"},
	{"internal/clock", nil, "time needs nobody"},
	{"internal/strictjson", nil, "how a file is read does not depend on what stands in it"},
	{"internal/*", []string{"..."}, "the rest of internal helps tests, and no row above lets code import it"},
	{"examples/...", []string{"..."}, "programs put the pieces together"},
	{"bench/...", []string{"..."}, "benchmarks put the pieces together"},
	{"cmd/...", []string{"..."}, "programs put the pieces together"},
}

// heavy names the dependencies that only these packages may import, tests included: users link what they import.
var heavy = []struct {
	dep string
	in  []string
}{
	{"github.com/hashicorp/", []string{"registry/consul", "internal/testconsul"}},
	{"github.com/sony/gobreaker", []string{"wrappers/breaker"}},
	{"golang.org/x/time/", []string{"wrappers/ratelimit"}},
	{"github.com/opentracing/", []string{"wrappers/trace", "internal/conformance"}},
}

// grpcNames are grpc's packages that have the name of one of ours.
var grpcNames = map[string]string{
	"google.golang.org/grpc/resolver": "gresolver",
	"google.golang.org/grpc/balancer": "gbalancer",
}

// timed says of the packages that give time and randomness which names a core may not use.
var (
	timed = map[string]func(name string) bool{
		"time":         regexp.MustCompile(`^(Now|Since|Until|Sleep|After|AfterFunc|Tick|NewTimer|NewTicker)$`).MatchString,
		"context":      regexp.MustCompile(`^With(Timeout|Deadline)(Cause)?$`).MatchString,
		"math/rand":    notMaker, // the global generator
		"math/rand/v2": notMaker,
		"crypto/rand":  func(string) bool { return true },
	}
	makers    = regexp.MustCompile(`^(New|Rand|(New)?(Source|Source64|PCG|ChaCha8|Zipf))$`)
	clockless = regexp.MustCompile(`^(balancer|filters|outcome|internal/(callctx|beacon|clock))/|(^|/)core\.go$`)
)

func notMaker(name string) bool { return !makers.MatchString(name) }

// rules are what the compiler does not check. scope gets the file's path from the root.
var rules = []struct {
	name  string
	why   string
	scope func(*source) bool
	find  func(*source) []finding
}{
	{"layers", "architecture.md, import rules",
		func(s *source) bool { return !s.nested && !s.test }, findLayers},
	{"nested", "whoever imports the library must not download what only a nested module needs",
		func(s *source) bool { return !s.nested }, findNested},
	{"heavy", "a user links only what they import",
		func(s *source) bool { return !s.nested }, findHeavy},
	{"no grpc", "cores are tested, fuzzed and simulated without connections; codes is only numbers",
		func(s *source) bool {
			return !s.nested && !s.test && (s.dir == "balancer/load" || s.dir == "balancer/outlier" || path.Base(s.path) == "core.go")
		}, findGRPC},
	{"grpc names", "resolver and balancer are ours here; grpc's are gresolver and gbalancer",
		func(s *source) bool { return !s.nested }, findGRPCNames},
	{"clock", "time is an argument and randomness a field, so that a simulator can run the real thing",
		func(s *source) bool { return !s.nested && !s.test && clockless.MatchString(s.path) }, findClock},
	{"sleep", "a test that sleeps is slow on a good day and wrong on a bad one: use testing/synctest, or poll a " +
		"condition in a loop with a deadline and pause by <-time.After there",
		func(s *source) bool { return s.test }, findSleep},
	{"root", "the root package is documentation",
		func(s *source) bool { return s.dir == "." && !s.test }, findCode},
}

// exceptions are the files, or directories if they end in a slash, where a rule does not hold. One that excuses
// nothing is reported as well.
var exceptions = []struct{ rule, path, why string }{
	{"clock", "internal/clock/", "somebody has to read the machine's clock; this is the only place"},
}

func TestRules(t *testing.T) {
	files := readTree(t)
	excused := make(map[int]bool)
	for _, r := range rules {
		for _, s := range files {
			if !r.scope(s) {
				continue
			}
			for _, f := range r.find(s) {
				if i := exceptionFor(r.name, s.path); i >= 0 {
					excused[i] = true
					continue
				}
				t.Errorf("%s: %s\n\trule %q: %s", s.fset.Position(f.pos), f.text, r.name, r.why)
			}
		}
	}
	for i, e := range exceptions {
		if !excused[i] {
			t.Errorf("exceptions[%d] (%s, %s) excuses nothing, want it deleted", i, e.rule, e.path)
		}
	}
}

func exceptionFor(rule, file string) int {
	for i, e := range exceptions {
		if e.rule == rule && (e.path == file || strings.HasSuffix(e.path, "/") && strings.HasPrefix(file, e.path)) {
			return i
		}
	}
	return -1
}

// source is a parsed file.
type source struct {
	path, dir     string // from the root, with slashes
	test          bool
	nested        bool // belongs to a nested module
	nestedModules []string
	fset          *token.FileSet
	file          *ast.File
}

type finding struct {
	pos  token.Pos
	text string
}

func parse(name string, src any, nestedDirs, nestedModules []string) (*source, error) {
	s := &source{path: name, dir: path.Dir(name), test: strings.HasSuffix(name, "_test.go"),
		nestedModules: nestedModules, fset: token.NewFileSet()}
	s.nested = slices.ContainsFunc(nestedDirs, func(d string) bool { return strings.HasPrefix(name, d+"/") })
	var err error
	s.file, err = parser.ParseFile(s.fset, name, src, parser.SkipObjectResolution)
	return s, err
}

// readTree parses every Go file of the repository, those of nested modules too.
func readTree(t *testing.T) []*source {
	t.Helper()
	var names, dirs, modules []string
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		switch base := d.Name(); {
		case err != nil:
			return err
		case d.IsDir() && (base == "testdata" || p != "." && strings.HasPrefix(base, ".")):
			return filepath.SkipDir
		case base == "go.mod" && p != base:
			text, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			name := regexp.MustCompile(`(?m)^module\s+(\S+)`).FindSubmatch(text)
			if name == nil {
				return fmt.Errorf("%s: no module line", p)
			}
			dirs, modules = append(dirs, filepath.ToSlash(filepath.Dir(p))), append(modules, string(name[1]))
		case strings.HasSuffix(base, ".go"):
			names = append(names, filepath.ToSlash(p))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var files []*source
	for _, name := range names {
		s, err := parse(name, nil, dirs, modules)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, s)
	}
	for _, name := range []string{"doc.go", "imports_test.go", "registry/registry.go", "internal/clock/clock.go"} {
		if !slices.Contains(names, name) {
			t.Fatalf("%s was not found, want a walk over the whole repository", name)
		}
	}
	return files
}

// imports calls f for each import with its path.
func (s *source) imports(f func(*ast.ImportSpec, string)) {
	for _, spec := range s.file.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil {
			f(spec, p)
		}
	}
}

// within reports whether p is the package or module prefix, or below it.
func within(p, prefix string) bool { return p == prefix || strings.HasPrefix(p, prefix+"/") }

func findLayers(s *source) (found []finding) {
	for _, row := range layers {
		tree, isTree := strings.CutSuffix(row.pkg, "/...")
		if ok, _ := path.Match(row.pkg, s.dir); !ok && !(isTree && within(s.dir, tree)) {
			continue
		}
		s.imports(func(spec *ast.ImportSpec, p string) {
			if !within(p, module) {
				return
			}
			pkg := strings.TrimPrefix(strings.TrimPrefix(p, module), "/")
			if !slices.Contains(row.may, pkg) && !slices.Contains(row.may, "...") {
				found = append(found, finding{spec.Pos(), fmt.Sprintf("%s imports %q, want only %q of this module: %s",
					s.dir, pkg, row.may, row.why)})
			}
		})
		return found
	}
	return []finding{{s.file.Package, fmt.Sprintf("package %s has no row in layers, want one", s.dir)}}
}

func findNested(s *source) (found []finding) {
	s.imports(func(spec *ast.ImportSpec, p string) {
		for _, m := range s.nestedModules {
			if within(p, m) {
				found = append(found, finding{spec.Pos(), fmt.Sprintf("imports %s of the nested module %s", p, m)})
			}
		}
	})
	return found
}

func findHeavy(s *source) (found []finding) {
	s.imports(func(spec *ast.ImportSpec, p string) {
		for _, h := range heavy {
			if strings.HasPrefix(p, h.dep) && !slices.Contains(h.in, s.dir) {
				found = append(found, finding{spec.Pos(), fmt.Sprintf("imports %s, want that only in %q", p, h.in)})
			}
		}
	})
	return found
}

func findGRPC(s *source) (found []finding) {
	const grpc = "google.golang.org/grpc"
	s.imports(func(spec *ast.ImportSpec, p string) {
		if within(p, grpc) && p != grpc+"/codes" {
			found = append(found, finding{spec.Pos(), fmt.Sprintf("imports %s, want no grpc but codes", p)})
		}
	})
	return found
}

func findGRPCNames(s *source) (found []finding) {
	s.imports(func(spec *ast.ImportSpec, p string) {
		want, ok := grpcNames[p]
		if ok && (spec.Name == nil || spec.Name.Name != want && spec.Name.Name != "_") {
			found = append(found, finding{spec.Pos(), fmt.Sprintf("imports %s without the name %s", p, want)})
		}
	})
	return found
}

func findCode(s *source) (found []finding) {
	for _, d := range s.file.Decls {
		found = append(found, finding{d.Pos(), "a declaration, want none"})
	}
	return found
}

// locals maps the names by which the file knows the packages to their import paths.
func (s *source) locals() map[string]string {
	names := make(map[string]string)
	s.imports(func(spec *ast.ImportSpec, p string) {
		name := path.Base(strings.TrimSuffix(p, "/v2"))
		if spec.Name != nil {
			name = spec.Name.Name
		}
		names[name] = p
	})
	return names
}

// use is the package and the name of an expression such as time.Now; empty for any other.
func use(n ast.Node, locals map[string]string) (pkg, name string) {
	if sel, ok := n.(*ast.SelectorExpr); ok {
		if x, ok := sel.X.(*ast.Ident); ok && locals[x.Name] != "" {
			return locals[x.Name], sel.Sel.Name
		}
	}
	return "", ""
}

func findClock(s *source) (found []finding) {
	locals := s.locals()
	if p := locals["."]; timed[p] != nil {
		found = append(found, finding{s.file.Package, fmt.Sprintf("imports %s with a dot, which hides its uses", p)})
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		if pkg, name := use(n, locals); timed[pkg] != nil && timed[pkg](name) {
			found = append(found, finding{n.Pos(), fmt.Sprintf("uses %s.%s, want what the caller hands in", pkg, name)})
		}
		return true
	})
	return found
}
