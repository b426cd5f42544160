package ratelimit

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func isRefused(err error) bool { return status.Code(err) == codes.ResourceExhausted }
