package server

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/internal/probe"
)

// infrastructure reports whether a gRPC service is part of how servers are run rather than of what they are for.
func infrastructure(service string) bool {
	return strings.HasPrefix(service, "grpc.health.") || strings.HasPrefix(service, "grpc.reflection.") ||
		strings.HasPrefix(service, "grpc.channelz.") || service == probe.Service
}

// startHealth sets the services that h knows nothing about to SERVING. What the app has set stays: an app that says
// NOT_SERVING, because it warms a cache, means it.
func startHealth(ctx context.Context, h *health.Server, services []string) {
	for _, service := range services {
		_, err := h.Check(ctx, &healthpb.HealthCheckRequest{Service: service})
		if status.Code(err) == codes.NotFound {
			h.SetServingStatus(service, healthpb.HealthCheckResponse_SERVING)
		}
	}
}

// awaitServing returns nil once h says that the server as a whole is SERVING, or ctx's error. waiting is called
// once if that is not so at first.
func awaitServing(ctx context.Context, h *health.Server, waiting func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st := &statusStream{ctx: ctx, waiting: waiting}
	_ = h.Watch(&healthpb.HealthCheckRequest{}, st) // always ends with an error: ours or the context's
	if st.serving {
		return nil
	}
	return ctx.Err()
}

var errServing = errors.New("serving")

// statusStream receives what a health watch sends, without a network.
type statusStream struct {
	ctx     context.Context
	waiting func()
	told    bool
	serving bool
}

var _ grpc.ServerStreamingServer[healthpb.HealthCheckResponse] = (*statusStream)(nil)

func (st *statusStream) Send(r *healthpb.HealthCheckResponse) error {
	if r.GetStatus() == healthpb.HealthCheckResponse_SERVING {
		st.serving = true
		return errServing // ends the watch
	}
	if !st.told {
		st.told = true
		st.waiting()
	}
	return nil
}

func (st *statusStream) Context() context.Context     { return st.ctx }
func (st *statusStream) SetHeader(metadata.MD) error  { return nil }
func (st *statusStream) SendHeader(metadata.MD) error { return nil }
func (st *statusStream) SetTrailer(metadata.MD)       {}
func (st *statusStream) SendMsg(any) error            { return nil }
func (st *statusStream) RecvMsg(any) error            { return nil }
