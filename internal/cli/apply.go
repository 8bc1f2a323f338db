package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/legation-io/legation/internal/fault"
	"github.com/spf13/cobra"
)

func applyCommand(o *options) *cobra.Command {
	var files []string
	var dryRun bool
	c := &cobra.Command{
		Use:   "apply -f FILE...",
		Short: "Declare resources: all are valid and stored, or none",
		Long: `Apply reads YAML or JSON documents (files, folders, or - for standard input),
checks them all, and stores all of them in one transaction. If there is one
mistake anywhere, every mistake is listed with file, line and what to write
instead, and nothing is stored.`,
		Example: "  legation apply -f identities.yaml\n  legation apply -f platform/ --dry-run",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			docs, err := readDocuments(o.in, files)
			if err != nil {
				return err
			}
			return o.admin(cmd.Context(), func(c adminv1.AdminClient) error {
				r, err := c.Apply(cmd.Context(), &adminv1.ApplyRequest{TrustDomain: o.trustDomain, Namespace: o.namespace, Documents: docs, DryRun: dryRun})
				if err != nil {
					return err
				}
				if err := o.problems(r.Problems); err != nil {
					return err
				}
				suffix := ""
				if dryRun {
					suffix = " (dry run)"
				}
				if err := o.printApplied(r.Applied, suffix); err != nil {
					return err
				}
				if len(r.Applied) == 0 {
					return fault.New(fault.Invalid, "nothing to apply in %s", strings.Join(files, ", "))
				}
				return nil
			})
		},
	}
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, folder, or - for standard input; may be given again")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "check everything, store nothing")
	_ = c.MarkFlagRequired("filename")
	return c
}

type problemView struct {
	File    string `json:"file"`
	Line    uint32 `json:"line"`
	Field   string `json:"field,omitempty"`
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"`
}

// problems tells every mistake, as talk or, with -o json, as the answer, and
// returns an error that counts them.
func (o *options) problems(list []*adminv1.Problem) error {
	if len(list) == 0 {
		return nil
	}
	refused := fault.New(fault.Invalid, "%s; nothing was stored", plural(len(list), "mistake"))
	if o.output == "json" || o.output == "yaml" {
		views := make([]problemView, len(list))
		for i, p := range list {
			views[i] = problemView{p.File, p.Line, p.Field, p.Message, p.Fix}
		}
		if err := o.print(map[string]any{"problems": views}, table{}); err != nil {
			return err
		}
		return refused
	}
	w := o.errOut
	for _, p := range list {
		fmt.Fprintf(w, "%s:%d: ", p.File, p.Line)
		if p.Field != "" {
			fmt.Fprintf(w, "%s: ", p.Field)
		}
		fmt.Fprint(w, p.Message)
		if p.Fix != "" {
			fmt.Fprintf(w, "; %s", p.Fix)
		}
		fmt.Fprintln(w)
	}
	return refused
}

type appliedView struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Action    string `json:"action"`
}

func (o *options) printApplied(applied []*adminv1.Applied, suffix string) error {
	views := make([]appliedView, len(applied))
	for i, a := range applied {
		views[i] = appliedView{a.Kind, a.Namespace, a.Name, a.Action}
	}
	switch o.output {
	case "json", "yaml":
		return o.print(views, table{})
	}
	for _, a := range applied {
		if o.output == "name" {
			fmt.Fprintf(o.out, "%s/%s\n", a.Kind, a.Name)
			continue
		}
		fmt.Fprintf(o.out, "%s/%s %s in %s%s\n", a.Kind, a.Name, a.Action, a.Namespace, suffix)
	}
	return nil
}

// maxDocuments bounds what one apply reads from disk.
const maxDocuments = 64 << 20

func readDocuments(in io.Reader, names []string) ([]*adminv1.Document, error) {
	var docs []*adminv1.Document
	total := 0
	add := func(name string, content []byte) error {
		if total += len(content); total > maxDocuments {
			return fault.New(fault.Invalid, "%s: more than %d MiB in one apply; split it", name, maxDocuments>>20)
		}
		docs = append(docs, &adminv1.Document{File: name, Content: content})
		return nil
	}
	for _, name := range names {
		if name == "-" {
			content, err := io.ReadAll(io.LimitReader(in, maxDocuments+1))
			if err != nil {
				return nil, err
			}
			if err := add("-", content); err != nil {
				return nil, err
			}
			continue
		}
		st, err := os.Stat(name)
		if err != nil {
			return nil, fault.New(fault.Invalid, "%w", err)
		}
		paths := []string{name}
		if st.IsDir() {
			paths = nil
			for _, pattern := range []string{"*.yaml", "*.yml", "*.json"} {
				found, _ := filepath.Glob(filepath.Join(name, pattern))
				paths = append(paths, found...)
			}
			sort.Strings(paths)
			if len(paths) == 0 {
				return nil, fault.New(fault.Invalid, "%s: no .yaml, .yml or .json file in this folder", name)
			}
		}
		for _, path := range paths {
			content, err := os.ReadFile(path)
			if err != nil {
				return nil, fault.New(fault.Invalid, "%w", err)
			}
			if err := add(path, content); err != nil {
				return nil, err
			}
		}
	}
	return docs, nil
}

func getCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "get KIND [NAME...]",
		Long: `Get shows what is declared, as it is stored. KIND is WorkloadIdentity, Service,
EndpointSlice, WorkloadEntry or Policy, in any spelling that kubectl takes, or
all.`,
		Short:             "Show declared resources",
		Example:           "  legation get workloadidentities -A\n  legation get service retrieval -o yaml\n  legation get all",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: o.resources,
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.admin(cmd.Context(), func(c adminv1.AdminClient) error {
				r, err := c.Get(cmd.Context(), &adminv1.GetRequest{TrustDomain: o.trustDomain, Namespace: o.space(), Kind: args[0], Names: args[1:]})
				if err != nil {
					return err
				}
				t := table{heading: []string{"NAMESPACE", "KIND", "NAME", "REVISION"}, none: "no resources found"}
				raw := []json.RawMessage{}
				for _, obj := range r.Objects {
					raw = append(raw, obj.Json)
					t.rows = append(t.rows, []string{obj.Namespace, obj.Kind, obj.Name, fmt.Sprint(obj.Revision)})
					t.names = append(t.names, obj.Kind+"/"+obj.Name)
				}
				if len(args) == 2 && len(raw) == 1 {
					return o.print(raw[0], t)
				}
				return o.print(map[string]any{"apiVersion": "v1", "kind": "List", "items": raw}, t)
			})
		},
	}
}

// space is the namespace to ask for: all with -A, "default" unless named.
func (o *options) space() string {
	if o.allSpaces {
		return ""
	}
	if o.namespace == "" {
		return "default"
	}
	return o.namespace
}

func deleteCommand(o *options) *cobra.Command {
	var files []string
	var ignore bool
	c := &cobra.Command{
		Use:   "delete (KIND NAME... | -f FILE...)",
		Short: "Remove declared resources",
		Long: `Delete removes all that is named, or nothing. An identity whose entry is gone
is renewed no more and dropped by the agents; its certificates stay valid until
they expire: to take them away at once, revoke.`,
		Example:           "  legation delete workloadidentity web\n  legation delete -f platform/",
		ValidArgsFunction: o.resources,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &adminv1.DeleteRequest{TrustDomain: o.trustDomain, Namespace: o.space(), IgnoreNotFound: ignore}
			switch {
			case len(files) > 0 && len(args) == 0:
				docs, err := readDocuments(o.in, files)
				if err != nil {
					return err
				}
				req.Documents = docs
			case len(files) == 0 && len(args) >= 2:
				req.Kind, req.Names = args[0], args[1:]
			default:
				return fault.New(fault.Invalid, "name what to delete: legation delete KIND NAME..., or: legation delete -f FILE")
			}
			return o.admin(cmd.Context(), func(c adminv1.AdminClient) error {
				r, err := c.Delete(cmd.Context(), req)
				if err != nil {
					return err
				}
				return o.printApplied(r.Deleted, "")
			})
		},
	}
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "delete what these files name")
	c.Flags().BoolVar(&ignore, "ignore-not-found", false, "an absent resource is no error")
	return c
}
