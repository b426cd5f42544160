package registrytest

// cases are the subtests, in the order they run.
var cases = []struct {
	name   string
	outage bool // needs Harness.Outage
	run    func(*bench)
}{
	{name: "first update comes even if empty", run: firstUpdate},
}

func firstUpdate(b *bench) {
	b.record(b.service("empty")).Await("an empty set", has())
}
