//go:build !unix

package main

import "syscall"

// There is no way to freeze a process here; Process.Signal refuses these.
const (
	stopSignal     = syscall.Signal(0x13)
	continueSignal = syscall.Signal(0x12)
)
