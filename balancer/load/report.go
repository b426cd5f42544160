package load

// Report is what a server says about itself: with the answer to a call, as gRPC's load reports travel (gRFC A51), or
// with the answer to a probe. The zero value is a report that says nothing but that nobody is being served; see RIF.
type Report struct {
	// RIF is how many requests the server has in flight, from all its clients; negative if it did not say.
	RIF int64
	// Latency is how long a request takes there that arrives now, by the server's own measurement, in nanoseconds; 0
	// if it did not say.
	Latency int64
	// Utilization is the part of its capacity that it uses, which may be above 1; 0 if it did not say. It is what the
	// application says, else the processor's (gRFC A58).
	Utilization float64
	// QPS and EPS are how many requests it ends in a second, and how many of them with an error; 0 if it did not say.
	QPS, EPS float64
}
