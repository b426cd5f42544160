package registrytest

// cases are the subtests, in the order they run. Every one of them is shown to fail by a broken registry in
// broken_test.go.
var cases = []struct {
	name   string
	outage bool // needs Harness.Outage
	run    func(*bench)
}{
	// cases_watch.go
	{name: "FirstUpdateComesEvenIfEmpty", run: firstUpdate},
	{name: "CurrentSetFirstThenChanges", run: currentSetFirst},
	{name: "ServicesAreApart", run: servicesApart},
	{name: "WatchEndsWithItsContext", run: watchEnds},
	{name: "WatchLeavesNoGoroutine", run: noGoroutineLeft},
	{name: "UpdatesBelongToTheReceiver", run: receiverOwns},
	{name: "SlowWatcherHoldsNobodyUp", run: slowWatcher},
	// cases_record.go
	{name: "ChangesAreSeen", run: changesSeen},
	{name: "EveryFieldArrives", run: everyField},
	{name: "ValuesArrive", run: valuesArrive},
	{name: "ManyLabelsArrive", run: manyLabels},
	{name: "LimitsRefuseNeverTruncate", run: limits},
	{name: "WeightZeroIsOne", run: weightZero},
	{name: "ForbiddenKeysAreRefused", run: forbiddenKeys},
	{name: "InvalidInstancesAreRefused", run: invalidInstances},
	{name: "UpdateKeepsIDAndAddresses", run: updateKeeps},
	// cases_life.go
	{name: "DeregistrationIsSeen", run: deregistration},
	{name: "HundredAtOnce", run: hundred},
	{name: "SameAddressNewestWins", run: sameAddress},
	{name: "SameIDNewestWins", run: sameID},
	{name: "CloseTwice", run: closeTwice},
	{name: "UpdateAfterClose", run: updateAfterClose},
	{name: "UpdatesRaceWithClose", run: updatesRaceWithClose},
	// cases_trouble.go
	{name: "MalformedRecordIsSkipped", run: malformed},
	{name: "RegistrationOutlivesRestart", run: restart},
	{name: "OutageIsAnError", outage: true, run: outageIsError},
	{name: "WritesDuringAnOutageArrive", outage: true, run: writesDuringOutage},
	{name: "CloseDuringAnOutageHolds", outage: true, run: closeDuringOutage},
}
