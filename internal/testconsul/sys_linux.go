package testconsul

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

const (
	sigStop = syscall.SIGSTOP
	sigCont = syscall.SIGCONT
)

// sysProcAttr has the kernel kill the server when the thread that started it ends, so that a test process that
// panics, times out or is killed leaves no server behind. run keeps that thread for as long as the server lives.
func sysProcAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// waitFrozen returns once every thread of pid has stopped. Sending SIGSTOP only asks for it: each thread stops when
// it next looks at its signals, and on a busy machine one of them answers a request or two before that.
func waitFrozen(pid int) error {
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		running, err := runningThreads(pid)
		if err != nil || running == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("testconsul: %d threads of process %d still run 10 s after SIGSTOP", running, pid)
		}
		<-tick.C
	}
}

// runningThreads counts the threads of pid that are neither stopped nor gone. The state is the field after the
// thread's name, which stands in parentheses and may have parentheses of its own (proc_pid_stat(5)).
func runningThreads(pid int) (int, error) {
	stats, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*", "stat"))
	if err != nil {
		return 0, err
	}
	running := 0
	for _, name := range stats {
		stat, err := os.ReadFile(name)
		if err != nil {
			continue // the thread ended meanwhile
		}
		rest := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(rest) == 0 {
			return 0, fmt.Errorf("testconsul: %s = %q, want a state after the name", name, stat)
		}
		switch rest[0][0] {
		case 'T', 't', 'Z', 'X':
		default:
			running++
		}
	}
	return running, nil
}
