//go:build unix && !linux

package testconsul

import "syscall"

const (
	sigStop = syscall.SIGSTOP
	sigCont = syscall.SIGCONT
)

// sysProcAttr is nil: these systems have no parent-death signal, so a test process that is killed leaves its
// server running.
func sysProcAttr() *syscall.SysProcAttr { return nil }

// waitFrozen does not wait: there is no portable way to see that the last thread has stopped.
func waitFrozen(int) error { return nil }
