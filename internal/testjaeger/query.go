package testjaeger

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"
)

// client asks over a connection of its own each time, so that none stays open.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// Query reads from a Jaeger's query API.
type Query struct {
	URL string // http://host:port
}

// Span is a span as Jaeger has stored it, with its children in the order of their start.
type Span struct {
	ID, Parent string // Parent is empty for a root
	Service    string // of the process that made it
	Operation  string
	Start      time.Time
	Duration   time.Duration
	Tags       map[string]string
	Logs       []Log // in the order of time
	Children   []*Span
}

// Log is a log of a span.
type Log struct {
	Time   time.Time
	Fields map[string]string
}

// TraceURL is where the query API has the trace, for people.
func (q Query) TraceURL(id string) string {
	return q.URL + "/api/traces/" + url.PathEscape(id) + "?prettyPrint=true"
}

// Trace returns the roots of the trace with this ID, spans whose parent is unknown included, and how many spans there
// are; none if Jaeger does not know the trace.
func (q Query) Trace(ctx context.Context, id string) (roots []*Span, n int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, q.URL+"/api/traces/"+url.PathEscape(id), nil)
	if err != nil {
		return nil, 0, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, 0, err
	}
	body, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if err != nil {
		return nil, 0, err
	}
	switch res.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, 0, nil
	default:
		return nil, 0, fmt.Errorf("jaeger: trace %s: %s: %.500s", id, res.Status, body)
	}
	var a answer
	if err := json.Unmarshal(body, &a); err != nil {
		return nil, 0, fmt.Errorf("jaeger: trace %s: %w", id, err)
	}
	if len(a.Data) != 1 {
		return nil, 0, fmt.Errorf("jaeger: trace %s: got %d traces, want 1", id, len(a.Data))
	}
	roots, n = a.Data[0].tree()
	return roots, n, nil
}

// Wait is Trace, but asks until there are at least n spans or ctx ends; an error says how many there are.
func (q Query) Wait(ctx context.Context, id string, n int) ([]*Span, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		roots, got, err := q.Trace(ctx, id)
		if err == nil && got >= n {
			return roots, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("jaeger: trace %s has %d spans, want %d: %w", id, got, n, cmp.Or(err, ctx.Err()))
		}
	}
}

// answer is what the query API says.
type answer struct {
	Data []data `json:"data"`
}

type data struct {
	Spans     []spanJSON `json:"spans"`
	Processes map[string]struct {
		ServiceName string `json:"serviceName"`
	} `json:"processes"`
}

type spanJSON struct {
	SpanID        string `json:"spanID"`
	OperationName string `json:"operationName"`
	ProcessID     string `json:"processID"`
	StartTime     int64  `json:"startTime"` // microseconds
	Duration      int64  `json:"duration"`  // microseconds
	References    []struct {
		RefType string `json:"refType"`
		SpanID  string `json:"spanID"`
	} `json:"references"`
	Tags []field `json:"tags"`
	Logs []struct {
		Timestamp int64   `json:"timestamp"` // microseconds
		Fields    []field `json:"fields"`
	} `json:"logs"`
}

type field struct {
	Key   string `json:"key"`
	Value any    `json:"value"`
}

func texts(fields []field) map[string]string {
	m := make(map[string]string, len(fields))
	for _, f := range fields {
		m[f.Key] = fmt.Sprint(f.Value)
	}
	return m
}

// tree puts the spans under their parents.
func (d *data) tree() (roots []*Span, n int) {
	spans := make(map[string]*Span, len(d.Spans))
	for _, j := range d.Spans {
		s := &Span{ID: j.SpanID, Service: d.Processes[j.ProcessID].ServiceName, Operation: j.OperationName,
			Start: time.UnixMicro(j.StartTime), Duration: time.Duration(j.Duration) * time.Microsecond, Tags: texts(j.Tags)}
		for _, r := range j.References {
			if r.RefType == "CHILD_OF" {
				s.Parent = r.SpanID
			}
		}
		for _, l := range j.Logs {
			s.Logs = append(s.Logs, Log{time.UnixMicro(l.Timestamp), texts(l.Fields)})
		}
		slices.SortStableFunc(s.Logs, func(a, b Log) int { return a.Time.Compare(b.Time) })
		spans[s.ID] = s
	}
	for _, s := range spans {
		if p := spans[s.Parent]; p != nil {
			p.Children = append(p.Children, s)
		} else {
			roots = append(roots, s)
		}
	}
	for _, s := range spans {
		sortSpans(s.Children)
	}
	sortSpans(roots)
	return roots, len(spans)
}

func sortSpans(s []*Span) {
	slices.SortFunc(s, func(a, b *Span) int { return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(a.ID, b.ID)) })
}
