package trace

import (
	"context"
	"encoding/binary"
	"strings"

	"github.com/opentracing/opentracing-go"
	"google.golang.org/grpc/metadata"
)

// binaryKey carries, in one binary value, the pairs that do not survive as text.
const binaryKey = "evenkeel-trace-bin"

// inject returns ctx with sc in the outgoing metadata, in the place of what another span had put there.
func inject(ctx context.Context, tracer opentracing.Tracer, sc opentracing.SpanContext) (context.Context, error) {
	md, ok := metadata.FromOutgoingContext(ctx) // a copy
	if !ok {
		md = make(metadata.MD, 4)
	}
	w := writer{md: md}
	if err := tracer.Inject(sc, opentracing.HTTPHeaders, &w); err != nil {
		return ctx, err
	}
	delete(md, binaryKey)
	if len(w.binary) > 0 {
		md[binaryKey] = []string{string(w.binary)}
	}
	return metadata.NewOutgoingContext(ctx, md), nil
}

// writer is an opentracing.TextMapWriter over metadata.
type writer struct {
	md     metadata.MD
	binary []byte
}

// Set implements [opentracing.TextMapWriter].
func (w *writer) Set(key, value string) {
	lower := strings.ToLower(key) // as in HTTP, the case of keys does not count
	if isKey(lower) && (strings.HasSuffix(lower, "-bin") && lower != binaryKey || isText(value)) {
		w.md[lower] = []string{value} // gRPC encodes the values of keys that end in -bin by itself
		return
	}
	if isKey(lower) {
		delete(w.md, lower) // what another span had there
	}
	w.binary = appendText(appendText(w.binary, key), value)
}

// reader is an opentracing.TextMapReader over metadata.
type reader struct{ md metadata.MD }

// ForeachKey implements [opentracing.TextMapReader].
func (r reader) ForeachKey(handle func(key, value string) error) error {
	for key, values := range r.md {
		for _, value := range values {
			if key == binaryKey {
				if err := eachPair(value, handle); err != nil {
					return err
				}
			} else if err := handle(key, value); err != nil {
				return err
			}
		}
	}
	return nil
}

// eachPair calls handle for the pairs in a binary value. One that is broken ends there: a stranger's garbage must not
// cost the trace what came well.
func eachPair(s string, handle func(key, value string) error) error {
	for s != "" {
		key, rest, ok := takeText(s)
		if !ok {
			return nil
		}
		value, rest, ok := takeText(rest)
		if !ok {
			return nil
		}
		if err := handle(key, value); err != nil {
			return err
		}
		s = rest
	}
	return nil
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func takeText(s string) (text, rest string, ok bool) {
	n, size := binary.Uvarint([]byte(s[:min(len(s), binary.MaxVarintLen64)]))
	if size <= 0 || n > uint64(len(s)-size) {
		return "", "", false
	}
	end := size + int(n)
	return s[size:end], s[end:], true
}

// isKey reports whether key, in lower case, is one that gRPC carries and does not use itself.
func isKey(key string) bool {
	for i := range len(key) {
		switch c := key[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	switch key {
	case "", "content-type", "user-agent", "te", "connection", "host", "grpc-message-type", "grpc-encoding", "grpc-message",
		"grpc-status", "grpc-timeout", binaryKey:
		return false
	}
	return true
}

// isText reports whether value arrives as it was sent: printable ASCII, with no space at its ends.
func isText(value string) bool {
	for i := range len(value) {
		if c := value[i]; c < ' ' || c > '~' {
			return false
		}
	}
	return value == "" || value[0] != ' ' && value[len(value)-1] != ' '
}
