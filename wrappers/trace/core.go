package trace

import (
	"strings"
	"sync"
	"time"

	"github.com/opentracing/opentracing-go"
	"github.com/opentracing/opentracing-go/log"
	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/internal/callctx"
)

// maxLogs bounds the logs of one span: a stream with a million messages must not collect a million logs.
const maxLogs = 128

// story is what there is to tell about one call or attempt until its span ends. Its zero value is ready. It never
// calls the tracer, so logs can come from anywhere, at any time: those that come too late are dropped.
type story struct {
	mu       sync.Mutex // guards what follows; nothing is called under it
	ended    bool
	logs     []opentracing.LogRecord
	dropped  int               // logs beyond maxLogs
	attempts int               // the highest number of an attempt
	endpoint *callctx.Endpoint // of the attempt that answered, or of the last that ended
	answered bool
}

// note adds a log; it reports whether the span was still open.
func (s *story) note(now time.Time, fields []log.Field) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended:
		return false
	case len(s.logs) >= maxLogs:
		s.dropped++
	default:
		s.logs = append(s.logs, opentracing.LogRecord{Timestamp: now, Fields: fields})
	}
	return true
}

// attempt notes that an attempt starts; it reports whether the span was still open.
func (s *story) attempt(number int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.attempts = max(s.attempts, number)
	return true
}

// attemptEnded notes that an attempt on e ended, and whether it went well. After one that did, others do not count.
func (s *story) attemptEnded(e *callctx.Endpoint, well bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e != nil && !s.answered {
		s.endpoint, s.answered = e, well
	}
}

// ending is the story when it is over.
type ending struct {
	logs              []opentracing.LogRecord
	dropped, attempts int
	endpoint          *callctx.Endpoint
}

// end closes the story. first is true once, for the caller who is to finish the span.
func (s *story) end() (e ending, first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return ending{}, false
	}
	s.ended = true
	e = ending{s.logs, s.dropped, s.attempts, s.endpoint}
	s.logs = nil
	return e, true
}

// maxText bounds the texts of errors in logs.
const maxText = 1 << 10

// eventFields is how a decision stands in a log.
func eventFields(e callctx.Event) []log.Field {
	fields := append(make([]log.Field, 0, 8), log.String("event", e.Kind.String()))
	if e.By != "" {
		fields = append(fields, log.String("by", e.By))
	}
	if e.Attempt != 0 {
		fields = append(fields, log.Int("attempt", e.Attempt))
	}
	if e.Delay != 0 {
		fields = append(fields, log.String("delay", e.Delay.String()))
	}
	if e.Endpoint != nil {
		fields = append(fields, log.String("endpoint", endpointName(e.Endpoint)))
	}
	if e.Detail != "" {
		fields = append(fields, log.String("detail", cut(e.Detail, maxText)))
	}
	if e.Err != nil {
		fields = append(fields, log.String("message", cut(e.Err.Error(), maxText)))
	}
	if e.DryRun {
		fields = append(fields, log.Bool("dry_run", true))
	}
	return fields
}

// endpointName is the instance's ID, or for endpoints of foreign resolvers the address.
func endpointName(e *callctx.Endpoint) string {
	if e.ID != "" {
		return e.ID
	}
	return e.Addr
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

// isError reports whether code makes a span of side an error. A server that answers NOT_FOUND has done its work.
func isError(side Side, c codes.Code) bool {
	if side == Client {
		return c != codes.OK
	}
	switch c {
	case codes.Unknown, codes.DeadlineExceeded, codes.Unimplemented, codes.Internal, codes.Unavailable, codes.DataLoss:
		return true
	}
	return false
}
