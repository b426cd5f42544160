package oteltrace

import (
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/internal/callctx"
	"github.com/evenkeel/evenkeel/wrappers/trace"
)

// maxText bounds the texts of errors.
const maxText = 1 << 10

// eventAttributes is how a decision stands in an event.
func eventAttributes(e callctx.Event) []attribute.KeyValue {
	attrs := make([]attribute.KeyValue, 0, 8)
	if e.By != "" {
		attrs = append(attrs, attribute.String("by", e.By))
	}
	if e.Attempt != 0 {
		attrs = append(attrs, attribute.Int("attempt", e.Attempt))
	}
	if e.Delay != 0 {
		attrs = append(attrs, attribute.String("delay", e.Delay.String()))
	}
	if e.Endpoint != nil {
		name := e.Endpoint.ID
		if name == "" {
			name = e.Endpoint.Addr
		}
		attrs = append(attrs, attribute.String("endpoint", name))
	}
	if e.Detail != "" {
		attrs = append(attrs, attribute.String("detail", cut(e.Detail, maxText)))
	}
	if e.Err != nil {
		attrs = append(attrs, attribute.String("message", cut(e.Err.Error(), maxText)))
	}
	if e.DryRun {
		attrs = append(attrs, attribute.Bool("dry_run", true))
	}
	return attrs
}

// cut shortens s to at most n bytes and a mark, without breaking a character. What is no character is replaced: errors
// and messages may have any bytes, and an exporter that speaks protobuf loses all spans that travel with a broken one.
func cut(s string, n int) string {
	if len(s) <= n {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	for n > 0 && s[n]&0xC0 == 0x80 { // the middle of a character
		n--
	}
	return strings.ToValidUTF8(s[:n], "\uFFFD") + "..."
}

var codeNames = [...]string{
	codes.OK: "OK", codes.Canceled: "CANCELLED", codes.Unknown: "UNKNOWN", codes.InvalidArgument: "INVALID_ARGUMENT",
	codes.DeadlineExceeded: "DEADLINE_EXCEEDED", codes.NotFound: "NOT_FOUND", codes.AlreadyExists: "ALREADY_EXISTS",
	codes.PermissionDenied: "PERMISSION_DENIED", codes.ResourceExhausted: "RESOURCE_EXHAUSTED",
	codes.FailedPrecondition: "FAILED_PRECONDITION", codes.Aborted: "ABORTED", codes.OutOfRange: "OUT_OF_RANGE",
	codes.Unimplemented: "UNIMPLEMENTED", codes.Internal: "INTERNAL", codes.Unavailable: "UNAVAILABLE",
	codes.DataLoss: "DATA_LOSS", codes.Unauthenticated: "UNAUTHENTICATED",
}

// codeName is the name that the gRPC specification gives to the code, or its number.
func codeName(c codes.Code) string {
	if uint64(c) < uint64(len(codeNames)) {
		return codeNames[c]
	}
	return c.String()
}

// isError reports whether code makes a span of side an error, by the semantic conventions for gRPC.
func isError(side trace.Side, c codes.Code) bool {
	if side == trace.Client {
		return c != codes.OK
	}
	switch c {
	case codes.Unknown, codes.DeadlineExceeded, codes.Unimplemented, codes.Internal, codes.Unavailable, codes.DataLoss:
		return true
	}
	return false
}
