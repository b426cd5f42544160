package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/evenkeel/evenkeel/bench/sim/lb"
	"github.com/evenkeel/evenkeel/bench/sim/report"
	"github.com/evenkeel/evenkeel/bench/sim/scenario"
)

// plan is what is run of one scenario.
type plan struct {
	scenario scenario.Scenario
	jobs     []scenario.Job
	command  string
}

func newPlan(s scenario.Scenario, o options) (plan, error) {
	p := plan{command: o.command(s.Name)}
	if len(o.steps) > 0 {
		steps, err := pick("step", o.steps, s.Steps, func(st scenario.Step) string { return st.Name })
		if err != nil {
			return p, fmt.Errorf("scenario %s: %w", s.Name, err)
		}
		s.Steps = steps
	}
	p.scenario = s.Scaled(o.size).Stretched(o.length)
	names := o.policies
	if len(names) == 0 {
		names = about(s.Name)
	}
	makers, err := pick("policy", names, policies(), policyName)
	if err != nil {
		return p, err
	}
	// A seed of all policies after the other: an interval needs several seeds of each, and what is known early is
	// known of all.
	for seed := range o.seeds {
		for _, m := range makers {
			p.jobs = append(p.jobs, scenario.Job{Scenario: p.scenario, Policy: m, Seed: uint64(seed + 1)})
		}
	}
	if o.againstSet && !slices.ContainsFunc(makers, func(m lb.Maker) bool { return m.Name == o.against }) {
		return p, fmt.Errorf("-against %q is none of the policies of %s, which are: %s", o.against, s.Name, strings.Join(names, ", "))
	}
	return p, errors.Join(p.scenario.Validate(), report.Check(p.scenario))
}

// command is the command line that gives this plan alone.
func (o options) command(name string) string {
	b := &strings.Builder{}
	fmt.Fprintf(b, "go run ./bench/sim -scenario %s", name)
	if len(o.policies) > 0 {
		fmt.Fprintf(b, " -policies '%s'", strings.Join(o.policies, ","))
	}
	if len(o.steps) > 0 {
		fmt.Fprintf(b, " -steps '%s'", strings.Join(o.steps, ","))
	}
	fmt.Fprintf(b, " -seeds %d -size %v -length %v", o.seeds, o.size, o.length)
	return b.String()
}

// write puts the results where the flags say.
func (p plan) write(results []*scenario.Result, o options, out io.Writer) error {
	b := &bytes.Buffer{}
	if err := report.Markdown(b, p.scenario, results, o.against); err != nil {
		return err
	}
	fmt.Fprintf(b, "\n`%s`\n", p.command)
	if o.out == "" && o.readme == "" {
		b.WriteByte('\n')
		_, err := out.Write(b.Bytes())
		return err
	}
	chart := report.Chart(p.scenario, results)
	if o.out != "" {
		if err := os.MkdirAll(o.out, 0o755); err != nil {
			return err
		}
		base := filepath.Join(o.out, p.scenario.Name)
		if err := os.WriteFile(base+".md", b.Bytes(), 0o644); err != nil {
			return err
		}
		if err := os.WriteFile(base+".svg", chart, 0o644); err != nil {
			return err
		}
	}
	if o.readme == "" {
		return nil
	}
	if o.out != "" {
		dir, err := filepath.Rel(filepath.Dir(o.readme), o.out)
		if err != nil {
			return err
		}
		fmt.Fprintf(b, "\n![%s](%s/%s.svg)\n", p.scenario.Title, filepath.ToSlash(dir), p.scenario.Name)
	}
	return place(b.Bytes(), p.scenario.Name, o, out)
}

// hasPlace returns an error if there is no place for a text in the readme of the flags, before hours are spent on the text.
func (o options) hasPlace(name string) error {
	if o.readme == "" {
		return nil
	}
	old, err := os.ReadFile(o.readme)
	if err == nil {
		_, err = section(old, name, nil)
	}
	if err != nil {
		return fmt.Errorf("-readme %s: %w", o.readme, err)
	}
	return nil
}

// place writes a text where the flags say: into a section of a readme, or to out.
func place(text []byte, name string, o options, out io.Writer) error {
	if o.readme == "" {
		_, err := out.Write(text)
		return err
	}
	old, err := os.ReadFile(o.readme)
	if err != nil {
		return err
	}
	replaced, err := section(old, name, text)
	if err != nil {
		return fmt.Errorf("%s: %w", o.readme, err)
	}
	return os.WriteFile(o.readme, replaced, 0o644)
}

// section replaces what stands between the marks of a name.
func section(text []byte, name string, with []byte) ([]byte, error) {
	begin, end := "<!-- begin "+name+" -->\n", "<!-- end "+name+" -->\n"
	i := bytes.Index(text, []byte(begin))
	j := bytes.Index(text, []byte(end))
	if i < 0 || j < i {
		return nil, fmt.Errorf("want the lines %q and %q, in this order", strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return slices.Concat(text[:i+len(begin)], with, text[j:]), nil
}
