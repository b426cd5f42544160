// Command trace shows one call over two hops, with a retry, as Jaeger has it: make tools && go run ./examples/trace
//
// It starts the Jaeger that "make tools" built on free ports of 127.0.0.1, runs the program in hops, which makes the
// call and is a module of its own because of what it links, reads the trace back from Jaeger's query API and prints it
// as a tree. Then Jaeger is stopped, unless -keep says to leave it running until Ctrl-C, so that the printed address
// can be looked at. With -otlp and -query it uses a Jaeger that runs already, for instance one with its web pages.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/evenkeel/evenkeel/internal/testjaeger"
)

// spans is how many the trace has when it is complete.
const spans = 9

func main() {
	keep := flag.Bool("keep", false, "leave Jaeger running until Ctrl-C")
	otlp := flag.String("otlp", "", "`host:port` of a running Jaeger's OTLP over gRPC; needs -query")
	query := flag.String("query", "", "`URL` of a running Jaeger's query service; needs -otlp")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout, *otlp, *query, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "trace:", err)
		stop()
		os.Exit(1)
	}
}

// run does what the package's documentation says.
func run(ctx context.Context, out io.Writer, otlp, query string, keep bool) (err error) {
	if (otlp == "") != (query == "") {
		return errors.New("want both -otlp and -query, or neither")
	}
	dir, err := os.MkdirTemp("", "evenkeel-trace-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	jaeger := testjaeger.Query{URL: strings.TrimSuffix(query, "/")}
	if otlp == "" {
		server, err := testjaeger.StartProcess(dir)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, server.Stop()) }()
		jaeger, otlp = server.Query, server.OTLP()
	}
	id, roots, err := trace(ctx, dir, jaeger, otlp)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s\n\n%s", jaeger.TraceURL(id), tree(roots))
	if keep {
		fmt.Fprintln(out, "\nJaeger runs until Ctrl-C.")
		<-ctx.Done()
	}
	return nil
}

// trace makes the call and returns the trace that came of it. Files go to dir.
func trace(ctx context.Context, dir string, jaeger testjaeger.Query, otlp string) (id string, roots []*testjaeger.Span, err error) {
	source, err := hops()
	if err != nil {
		return "", nil, err
	}
	program := filepath.Join(dir, "hops.exe") // the suffix is needed on Windows, and harmless elsewhere
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", program, ".")
	build.Dir, build.Stderr = source, os.Stderr
	build.Env = append(os.Environ(), "GOWORK=off")
	if err := build.Run(); err != nil {
		return "", nil, fmt.Errorf("go build in %s: %w", source, err)
	}
	call := exec.CommandContext(ctx, program, "-otlp", otlp)
	call.Stderr = os.Stderr
	stdout, err := call.Output()
	if err != nil {
		return "", nil, fmt.Errorf("hops: %w", err)
	}
	id = strings.TrimSpace(string(stdout))
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	roots, err = jaeger.Wait(ctx, id, spans)
	return id, roots, err
}

// hops is the directory of the program that makes the call, found from the working directory up.
func hops() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		hops := filepath.Join(dir, "examples", "trace", "hops")
		if _, err := os.Stat(filepath.Join(hops, "go.mod")); err == nil {
			return hops, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("examples/trace/hops not found: run this inside the repository")
		}
		dir = parent
	}
}

// shown are the tags in a tree, in their order.
var shown = []string{"rpc.response.status_code", "evenkeel.attempt", "evenkeel.attempts", "evenkeel.instance", "evenkeel.filter"}

// tree is the text of spans: a line for each, indented below its parent, its logs beneath it.
func tree(roots []*testjaeger.Span) string {
	var b strings.Builder
	var print func(s *testjaeger.Span, indent string)
	print = func(s *testjaeger.Span, indent string) {
		fmt.Fprintf(&b, "%s%s %s %s", indent, s.Service, s.Tags["span.kind"], s.Operation)
		for _, key := range shown {
			if v, ok := s.Tags[key]; ok {
				fmt.Fprintf(&b, " %s=%s", key[strings.LastIndexByte(key, '.')+1:], v)
			}
		}
		b.WriteByte('\n')
		for _, l := range s.Logs {
			fmt.Fprintf(&b, "%s  * %s", indent, l.Fields["event"])
			for _, key := range slices.Sorted(maps.Keys(l.Fields)) {
				if key != "event" {
					fmt.Fprintf(&b, " %s=%s", key, l.Fields[key])
				}
			}
			b.WriteByte('\n')
		}
		for _, c := range s.Children {
			print(c, indent+"  ")
		}
	}
	for _, s := range roots {
		print(s, "")
	}
	return b.String()
}
