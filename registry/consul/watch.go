package consul

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http/httptrace"
	"slices"
	"sync"
	"time"

	"github.com/evenkeel/evenkeel/registry"
	"github.com/hashicorp/consul/api"
)

// slack is how much later than WaitTime an answer may come before Consul counts as frozen. Consul itself adds up to
// a sixteenth of WaitTime.
const slack = 10 * time.Second

// errNoAnswer is the cause of a query's end after its time.
var errNoAnswer = errors.New("no answer in time")

// Watch implements [registry.Watcher]. It speaks to Consul on the caller's goroutine and starts none. An update
// that would repeat the last one is left out.
func (r *Registry) Watch(ctx context.Context, service string, update func([]registry.Instance)) error {
	if err := checkService(service); err != nil {
		return err
	}
	if err := r.enter(); err != nil {
		return err
	}
	defer r.work.Done()
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()

	err := r.watch(ctx, service, update)
	switch {
	case outer.Err() != nil:
		return outer.Err()
	case r.ctx.Err() != nil:
		return ErrClosed
	}
	return fmt.Errorf("consul: watch of %q at %s: %w", service, r.where, r.secrets.clean(err))
}

// watch returns why it ended.
func (r *Registry) watch(ctx context.Context, service string, update func([]registry.Instance)) error {
	var (
		q     = querier{r: r, service: service}
		pace  pace
		last  []registry.Instance
		first = true
	)
	for {
		// What follows a query without an index does so at once, since cursor relies on that; every other waits.
		if !q.cursor.fresh && !sleep(ctx, pace.reserve(r.now())) {
			return ctx.Err()
		}
		entries, meta, err := q.ask(ctx)
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			if err := r.emptyIsTrue(service, meta); err != nil {
				return err
			}
		}
		if !q.cursor.answered(meta.LastIndex) && !first {
			continue
		}
		ins, faults := decodeAll(entries)
		r.faults.report(service, faults)
		if first || !slices.EqualFunc(ins, last, registry.Instance.Equal) {
			last = last[:0]
			for _, in := range ins {
				last = append(last, in.Clone()) // the update's own belong to its receiver
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			update(ins)
		}
		first = false
	}
}

// errMoved says that a query was given up because its index does not belong to its connection; see cursor.
var errMoved = errors.New("the connection is another")

// querier asks the queries of one watch, one after the other.
type querier struct {
	r       *Registry
	service string
	cursor  cursor

	mu   sync.Mutex // guards conn, and the cursor while a query is under way: net/http calls back when it likes
	conn net.Conn   // what the last query went over; only compared
}

// ask asks once: at once if the cursor is at the beginning, else when something has changed.
func (q *querier) ask(ctx context.Context) ([]*api.ServiceEntry, *api.QueryMeta, error) {
	r := q.r
	o := &api.QueryOptions{
		Token:             r.secrets.token(),
		AllowStale:        r.cfg.Consistency == ConsistencyStale,
		RequireConsistent: r.cfg.Consistency == ConsistencyStrong,
		WaitIndex:         q.cursor.index,
		// It is the only way to keep the agent from answering out of its streaming backend, whose view of a service
		// can lack an instance for good (ADR-0004). That the answer is sorted by distance is not used.
		Near: "_agent",
	}
	limit := requestTime
	if o.WaitIndex != 0 {
		// Less a tenth at random, so that a thousand watches that began together do not come back together.
		o.WaitTime = r.cfg.WaitTime - time.Duration(r.random()*float64(r.cfg.WaitTime)/10)
		limit = r.cfg.WaitTime + r.cfg.WaitTime/16 + slack
	}
	ctx, stop := context.WithTimeoutCause(ctx, limit, errNoAnswer)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	again, over := false, false
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		q.mu.Lock()
		defer q.mu.Unlock()
		if over {
			return // it was cancelled meanwhile
		}
		if info.Conn != q.conn && q.cursor.moved(again) {
			cancel(errMoved)
		}
		q.conn, again = info.Conn, true
	}})
	entries, meta, err := r.client.Health().ServiceMultipleTags(q.service, r.cfg.WatchTags, true, o.WithContext(traced))
	q.mu.Lock()
	over = true
	q.mu.Unlock()
	switch cause := context.Cause(ctx); {
	case cause == errMoved:
		return nil, nil, errMoved
	case err != nil && cause == errNoAnswer:
		err = fmt.Errorf("no answer within %v: Consul is frozen or cannot be reached", limit)
	}
	return entries, meta, err
}

// emptyIsTrue returns an error if meta says that an empty answer does not mean that there is no instance.
func (r *Registry) emptyIsTrue(service string, meta *api.QueryMeta) error {
	if r.anonymous && meta.DefaultACLPolicy == "deny" {
		// To who comes without a token Consul does not say that it hides something. Those without a token may be
		// allowed to read everything, so this is a hint and not an error.
		r.hint.Do(func() {
			r.cfg.Logger.Warn("consul: no instance is visible without a token, and Consul denies by default",
				"service", service, "consul", r.where)
		})
	}
	if meta.ResultsFilteredByACLs {
		return errors.New("the ACL token may not see the instances: it needs service:read for the service and node:read")
	}
	// A stale answer may come from a server that has just started and knows nothing yet. (Answers of the streaming
	// backend never claim to know a leader.)
	if r.cfg.Consistency == ConsistencyStale && !meta.KnownLeader && meta.QueryBackend != api.QueryBackendStreaming {
		return errors.New("the server that answered knows no leader, and no instances")
	}
	return nil
}

// sleep waits for d and reports whether ctx still goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-ctx.Done():
		case <-t.C:
		}
	}
	return ctx.Err() == nil
}

// faultLog logs a record that cannot be an instance when it appears, when its fault changes, and when it is well or
// gone; not with every answer, and not once for each watch. It is safe for concurrent use once logger is set.
type faultLog struct {
	logger *slog.Logger

	mu       sync.Mutex // guards services; nothing is logged under it
	services map[string]map[string]string
}

// report takes the faults of one answer.
func (l *faultLog) report(service string, faults []fault) {
	now := make(map[string]string, len(faults))
	for _, f := range faults {
		now[f.key] = f.reason
	}
	l.mu.Lock()
	before := l.services[service]
	if l.services == nil {
		l.services = make(map[string]map[string]string)
	}
	if len(now) > 0 {
		l.services[service] = now
	} else {
		delete(l.services, service)
	}
	l.mu.Unlock()

	for _, key := range slices.Sorted(maps.Keys(now)) {
		if reason := now[key]; before[key] != reason {
			l.logger.Warn("consul: a record is left out", "service", service, "record", key, "reason", reason)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(before)) {
		if _, still := now[key]; !still {
			l.logger.Info("consul: a record that was left out is well or gone", "service", service, "record", key)
		}
	}
}
