//go:build !unix

package testconsul

import "syscall"

// There is no way to freeze a process here; Process.Signal refuses these, so Pause and Continue return an error.
const (
	sigStop = syscall.Signal(0x13)
	sigCont = syscall.Signal(0x12)
)

func sysProcAttr() *syscall.SysProcAttr { return nil }

func waitFrozen(int) error { return nil }
