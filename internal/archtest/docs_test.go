package archtest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// adrHeadings are what every decision record has, in this order. The last one makes a decision testable.
var adrHeadings = []string{"## Context", "## Decision", "## Consequences", "## How we would know it was wrong"}

var adrName = regexp.MustCompile(`^(\d{4})-[a-z0-9]+(?:-[a-z0-9]+)*\.md$`)

func TestEveryDecisionRecordHasItsFourHeadingsAndItsOwnNumber(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(root, "docs/adr/*"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("found no decision records: %v", err)
	}
	numbers := map[string]string{}
	for _, path := range paths {
		name := filepath.Base(path)
		m := adrName.FindStringSubmatch(name)
		if m == nil {
			t.Errorf("docs/adr/%s is not named NNNN-title-in-lower-case.md", name)
			continue
		}
		if other, taken := numbers[m[1]]; taken {
			t.Errorf("docs/adr/%s has the number of %s", name, other)
		}
		numbers[m[1]] = name
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if complaint := checkADR(string(text)); complaint != "" {
			t.Errorf("docs/adr/%s: %s", name, complaint)
		}
	}
}

func checkADR(text string) string {
	if !strings.HasPrefix(text, "# ") {
		return "does not begin with a title"
	}
	rest := text
	for i, heading := range adrHeadings {
		_, after, ok := strings.Cut(rest, "\n"+heading+"\n")
		if !ok {
			return "lacks the heading " + heading + ", or has it out of order"
		}
		body := after
		if i+1 < len(adrHeadings) {
			body, _, _ = strings.Cut(after, "\n"+adrHeadings[i+1]+"\n")
		}
		if strings.TrimSpace(body) == "" {
			return "says nothing under " + heading
		}
		rest = "\n" + after
	}
	return ""
}

// link matches the target of a markdown link that is neither an address nor a place on the same page.
var link = regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)

func TestLinksBetweenDocumentsLeadSomewhere(t *testing.T) {
	var docs []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/adr/*.md", "docs/model/*.md", "deploy/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		docs = append(docs, found...)
	}
	for _, doc := range docs {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(doc), m[1])); err != nil {
				t.Errorf("%s links to %s, which is not there", filepath.Base(doc), m[1])
			}
		}
	}
}

func TestTheDocumentChecksSeeEachKindOfOffence(t *testing.T) {
	good := "# 1. Title\n\n" + strings.Join(adrHeadings, "\n\ntext\n\n") + "\n\ntext\n"
	if c := checkADR(good); c != "" {
		t.Errorf("a good record was refused: %s", c)
	}
	for name, bad := range map[string]string{
		"no title":        strings.TrimPrefix(good, "# "),
		"missing heading": strings.Replace(good, "## Consequences", "## Effects", 1),
		"wrong order":     strings.NewReplacer("## Context", "## Decision", "## Decision", "## Context").Replace(good),
		"empty part":      strings.Replace(good, "## Decision\n\ntext", "## Decision\n", 1),
	} {
		if checkADR(bad) == "" {
			t.Errorf("%s passed", name)
		}
	}
}
