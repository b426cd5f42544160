package balancer

import (
	"encoding/json"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/evenkeel/evenkeel/outcome"
)

func init() {
	outcome.Register("test-strict", strict)
}

func init() {
	RegisterStrategy("test-recorder", func(json.RawMessage) (Strategy, error) { return recorder{}, nil })
}

// question is what a classifier was asked.
type question struct {
	method    string
	remaining time.Duration
}

var asked []question

// strict takes NOT_FOUND for a failure, and notes what it is asked. One goroutine at a time may use it.
func strict(method string, err error, remaining time.Duration) outcome.Class {
	asked = append(asked, question{method, remaining})
	if outcome.Code(err) == codes.NotFound {
		return outcome.Failure
	}
	return outcome.Default(method, err, remaining)
}
