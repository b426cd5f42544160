package testjaeger

import "syscall"

// sysProcAttr has the kernel kill the server when the thread that started it ends, so that a program that panics or
// is killed leaves no server behind. run keeps that thread for as long as the server lives.
func sysProcAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
