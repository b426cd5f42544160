package filters

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDocs holds the tables of docs/filters.md against the code: what is said to be canonical, and what Version is
// said to make.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../docs/filters.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range []struct {
		head string
		make func(string) Filter
		rows int
	}{
		{"| written | canonical |", MustParse, 8},
		{"| condition | canonical |", MustParse, 6},
		{"| `Version(...)` | conditions |", Version, 8},
		{"| text | is met by an instance |", MustParse, 15},
	} {
		_, rest, found := strings.Cut(string(text), "\n"+table.head)
		if !found {
			t.Errorf("no table %q", table.head)
			continue
		}
		body, _, _ := strings.Cut(rest, "\n\n")
		rows := strings.Split(body, "\n")[2:]
		if len(rows) < table.rows {
			t.Errorf("%q: %d rows, want %d", table.head, len(rows), table.rows)
		}
		for _, row := range rows {
			cells := strings.Split(row, "|")
			left, right := spans(cells[1]), spans(cells[2])
			for i, l := range left {
				f := table.make(l)
				if f.Err() != nil {
					t.Errorf("%s: %s: %v", table.head, l, f.Err())
				}
				if table.head == "| text | is met by an instance |" {
					continue // its second column is prose
				}
				want := right[min(i, len(right)-1)]
				if f != MustParse(want) || table.head != "| `Version(...)` | conditions |" && f.String() != want {
					t.Errorf("%s: %s makes %s, the table says %s", table.head, l, f, want)
				}
			}
		}
	}
}

var codeSpan = regexp.MustCompile("`([^`]+)`|<code>([^<]+)</code>")

func spans(cell string) (texts []string) {
	for _, m := range codeSpan.FindAllStringSubmatch(cell, -1) {
		texts = append(texts, strings.ReplaceAll(m[1]+m[2], "&#124;", "|"))
	}
	return texts
}
