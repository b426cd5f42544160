package breaker

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var errDown = status.Error(codes.Unavailable, "down")

func fails(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return errDown }
