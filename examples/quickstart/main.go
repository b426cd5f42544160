// Quickstart shows evenkeel at work: five real gRPC servers on loopback, one of them a canary, and a client that
// calls them steadily while things happen. It ends by itself in less than 30 seconds, with status 0 if everything
// that it promises held.
//
//	go run ./examples/quickstart
//	go run ./examples/quickstart -registry consul://127.0.0.1:8500
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/evenkeel/evenkeel/registry"
	"github.com/evenkeel/evenkeel/registry/consul"
	"github.com/evenkeel/evenkeel/registry/memory"
)

func main() {
	where := flag.String("registry", "memory", "where the instances are announced: memory, or consul://HOST:PORT")
	verbose := flag.Bool("v", false, "show the library's log on standard error")
	flag.Parse()
	if !*verbose {
		slog.SetDefault(slog.New(slog.DiscardHandler))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, isTerminal(os.Stdout), *where); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		stop()
		os.Exit(1)
	}
}

// run plays the whole demonstration, and says by its error what did not hold.
func run(ctx context.Context, out io.Writer, live bool, where string) error {
	reg, closeReg, err := open(where)
	if err != nil {
		return err
	}
	defer closeReg()
	d, err := newDemo(ctx, reg, newScreen(out, live))
	if err != nil {
		return err
	}
	defer d.close()
	return d.play(ctx)
}

// open opens the registry that the flag names.
func open(where string) (registry.Registry, func(), error) {
	if where == "memory" {
		return memory.New(), func() {}, nil
	}
	addr, ok := strings.CutPrefix(where, "consul://")
	if !ok || addr == "" {
		return nil, nil, fmt.Errorf("-registry = %q, want memory or consul://HOST:PORT", where)
	}
	reg, err := consul.New(consul.Config{Address: addr})
	if err != nil {
		return nil, nil, fmt.Errorf("-registry: %w", err)
	}
	return reg, func() { _ = reg.Close() }, nil
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
