package testconsul

import "syscall"

const (
	sigStop = syscall.SIGSTOP
	sigCont = syscall.SIGCONT
)

// sysProcAttr has the kernel kill the server when the thread that started it ends, so that a test process that
// panics, times out or is killed leaves no server behind. run keeps that thread for as long as the server lives.
func sysProcAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
