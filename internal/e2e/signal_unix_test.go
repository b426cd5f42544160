//go:build unix

package e2e

import (
	"context"
	"os/signal"
	"syscall"
)

// signalContext ends with the first SIGTERM.
func signalContext(ctx context.Context) context.Context {
	ctx, _ = signal.NotifyContext(ctx, syscall.SIGTERM) //nolint:govet // the process ends with it
	return ctx
}
