package scenario

import (
	"fmt"
	"sync"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
)

// Job is one simulation of many.
type Job struct {
	Scenario Scenario
	Policy   lb.Maker
	Seed     uint64
}

// All runs jobs on so many goroutines and returns their results in the order of the jobs. done, if not nil, is called
// after each, on one goroutine at a time. After an error no more jobs are begun.
func All(jobs []Job, parallel int, done func(finished int, r *Result)) ([]*Result, error) {
	var (
		mu       sync.Mutex // guards what follows
		next     int
		finished int
		failed   error
		results  = make([]*Result, len(jobs))
		wg       sync.WaitGroup
	)
	take := func() int {
		mu.Lock()
		defer mu.Unlock()
		if failed != nil || next == len(jobs) {
			return -1
		}
		next++
		return next - 1
	}
	give := func(i int, r *Result, err error) {
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			failed = fmt.Errorf("seed %d: %w", jobs[i].Seed, err)
			return
		}
		results[i] = r
		finished++
		if done != nil {
			done(finished, r)
		}
	}
	for range max(parallel, 1) {
		wg.Go(func() {
			for i := take(); i >= 0; i = take() {
				r, err := Run(jobs[i].Scenario, jobs[i].Policy, jobs[i].Seed)
				give(i, r, err)
			}
		})
	}
	wg.Wait()
	return results, failed
}
