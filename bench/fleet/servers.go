package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/internal/greeter"
	"github.com/evenkeel/evenkeel/server"
)

// roleVariable is the variable of the environment that makes this program a server, and says which.
const roleVariable = "EVENKEEL_FLEET_ROLE"

// What servers there are.
const (
	normal  = "normal"
	slow    = "slow"
	failing = "failing"
	paused  = "paused"
)

var (
	roles = []string{normal, normal, normal, slow, failing, paused}
	odd   = []string{slow, failing, paused}
)

const (
	// workTime is what a call takes in the mean; the slow server takes ten times as long.
	workTime = 5 * time.Millisecond
	// workers is how many calls a server works on at a time; the others wait.
	workers = 4
)

// serve is what a server's process does: it prints its address and serves until in ends, which it does when the parent
// does.
func serve(role string, in io.Reader, out io.Writer) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	load := server.NewLoad(server.LoadConfig{})
	s := grpc.NewServer(grpc.UnaryInterceptor(load.UnaryServerInterceptor()))
	load.Register(s) // answers the probes of prequal and keel
	greeter.Register(s, worker(role))
	go func() {
		_, _ = io.Copy(io.Discard, in)
		s.Stop()
	}()
	if _, err := fmt.Fprintln(out, listener.Addr()); err != nil {
		return err
	}
	return s.Serve(listener)
}

// worker answers calls the way a server of this role does.
func worker(role string) greeter.HelloFunc {
	mean := workTime
	if role == slow {
		mean *= 10
	}
	places := make(chan struct{}, workers)
	return func(ctx context.Context, _ string) (string, error) {
		if role == failing && rand.IntN(2) == 0 {
			return "", status.Error(codes.Unavailable, "half of the calls fail here")
		}
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return "", status.FromContextError(ctx.Err()).Err()
		}
		defer func() { <-places }()
		work := time.NewTimer(time.Duration(rand.ExpFloat64() * float64(mean)))
		defer work.Stop()
		select {
		case <-work.C:
			return role, nil
		case <-ctx.Done():
			return "", status.FromContextError(ctx.Err()).Err()
		}
	}
}

// fleet is the processes of the servers.
type fleet struct {
	addrs []string
	roles map[string]string // by address
	procs []*exec.Cmd
	stdin []io.Closer
}

// launch starts the servers and waits until all have said where they are.
func launch(ctx context.Context) (*fleet, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	f := &fleet{roles: make(map[string]string)}
	for _, role := range roles {
		if err := f.start(ctx, self, role); err != nil {
			f.stop()
			return nil, fmt.Errorf("server %s: %w", role, err)
		}
	}
	return f, nil
}

func (f *fleet) start(ctx context.Context, self, role string) error {
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	f.procs, f.stdin = append(f.procs, cmd), append(f.stdin, in)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return errors.New("it ended without saying where it listens")
	}
	addr := strings.TrimSpace(line)
	f.addrs = append(f.addrs, addr)
	f.roles[addr] = role
	return nil
}

// stop ends the servers.
func (f *fleet) stop() {
	for i, p := range f.procs {
		_ = f.stdin[i].Close()
		_ = p.Process.Kill() // one that is frozen does not see the end of its input
		_ = p.Wait()
	}
}

// of is the process with a role.
func (f *fleet) of(role string) *os.Process {
	for i, addr := range f.addrs {
		if f.roles[addr] == role {
			return f.procs[i].Process
		}
	}
	return nil
}

// freeze stops the server that pauses for d once a second, until ctx ends.
func (f *fleet) freeze(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return nil
	}
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for {
		if err := wait(ctx, second.C); err != nil {
			return nil
		}
		if err := f.of(paused).Signal(stopSignal); err != nil {
			return fmt.Errorf("freezing a server: %w (-pause 0 does without)", err)
		}
		thaw := time.NewTimer(d)
		err := wait(ctx, thaw.C)
		thaw.Stop()
		if cont := f.of(paused).Signal(continueSignal); cont != nil {
			return fmt.Errorf("thawing a server: %w", cont)
		}
		if err != nil {
			return nil
		}
	}
}

func wait(ctx context.Context, c <-chan time.Time) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-c:
		return nil
	}
}
