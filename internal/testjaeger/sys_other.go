//go:build !linux

package testjaeger

import "syscall"

// sysProcAttr is nil: there is no parent-death signal here, so a program that is killed leaves its server running.
func sysProcAttr() *syscall.SysProcAttr { return nil }
