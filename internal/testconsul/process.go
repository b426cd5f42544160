package testconsul

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"time"
)

const (
	loopback = "127.0.0.1"
	// Ports outside the ranges that Linux (32768 up), Windows and the BSDs (49152 up) use for outgoing connections.
	firstPort, lastPort = 20000, 32000
)

// errPortTaken says that somebody took a port between the moment it was found free and the server's start.
var errPortTaken = errors.New("a port was taken meanwhile")

// ports are the server's, as its configuration spells them; -1 switches one off.
type ports struct {
	HTTP    int `json:"http"`
	HTTPS   int `json:"https"`
	GRPC    int `json:"grpc"`
	GRPCTLS int `json:"grpc_tls"`
	DNS     int `json:"dns"`
	SerfLAN int `json:"serf_lan"`
	SerfWAN int `json:"serf_wan"`
	Server  int `json:"server"`
}

func addr(port int) string { return net.JoinHostPort(loopback, strconv.Itoa(port)) }

// freePorts finds a set of ports that are free for TCP and UDP now.
func freePorts(https bool) (ports, error) {
	p := ports{HTTPS: -1, GRPCTLS: -1}
	want := []*int{&p.HTTP, &p.GRPC, &p.DNS, &p.SerfLAN, &p.SerfWAN, &p.Server}
	if https {
		want = append(want, &p.HTTPS)
	}
	taken := map[int]bool{}
	for tries := 0; len(want) > 0; tries++ {
		if tries == 1000 {
			return ports{}, fmt.Errorf("testconsul: no free port from %d to %d in %d tries", firstPort, lastPort, tries)
		}
		port := firstPort + rand.IntN(lastPort-firstPort)
		if taken[port] || !isFree(port) {
			continue
		}
		taken[port] = true
		*want[0], want = port, want[1:]
	}
	return p, nil
}

func isFree(port int) bool {
	tcp, err := net.Listen("tcp", addr(port))
	if err != nil {
		return false
	}
	defer func() { _ = tcp.Close() }()
	udp, err := net.ListenPacket("udp", addr(port))
	if err != nil {
		return false
	}
	return udp.Close() == nil
}

// process is one run of the server. err may be read once ended is closed.
type process struct {
	cmd   *exec.Cmd
	log   string
	ended chan struct{}
	err   error
}

// run starts cmd with its output in the file log. A goroutine of its own starts it, waits for it and closes ended.
func run(cmd *exec.Cmd, log string) (*process, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = sysProcAttr()
	p := &process{cmd: cmd, log: log, ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The parent-death signal comes when the thread that started the child ends, so that thread stays.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
		_ = out.Close()
	}()
	if err := <-started; err != nil {
		<-p.ended
		return nil, err
	}
	return p, nil
}

// kill ends the process, frozen or not, and waits for its end.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("testconsul: kill: %w", err)
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(10 * time.Second):
		return fmt.Errorf("testconsul: process %d did not end within 10 s of being killed", p.cmd.Process.Pid)
	}
}

// logTail is the end of the server's log.
func (p *process) logTail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	const most = 4 << 10
	return string(bytes.TrimSpace(b[max(0, len(b)-most):]))
}
