//go:build race

package bench

// raceDetector: a sync.Pool drops a part of what it is given on purpose.
const raceDetector = true
