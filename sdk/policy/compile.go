package policy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/types"
)

// Program is a policy that compiled. It is immutable and may be evaluated by
// many goroutines at once.
type Program struct {
	name, version string
	digest        [sha256.Size]byte
	compiler      *ast.Compiler
	body          ast.Body
	answer        ast.Var
	data          baseDocument
	asksRequest   bool // whether input.request can matter
	store         storage.Store
	txn           storage.Transaction // open for reading, for ever: nothing writes
}

// Name of the policy.
func (p *Program) Name() string { return p.name }

// Version of the policy, as its source gave it.
func (p *Program) Version() string { return p.version }

// Compile checks and prepares a policy. The error is an Errors: all mistakes
// that one pass finds, with file and line. It evaluates nothing; New and
// Engine.Set also ask a test question.
func Compile(ctx context.Context, p Policy) (program *Program, err error) {
	defer func() { // it may be anybody's policy
		if r := recover(); r != nil {
			program, err = nil, mistake("the compiler panicked: %v", r)
		}
	}()
	ref, err := checkBounds(p)
	if err != nil {
		return nil, err
	}
	modules, v0, err := parseAll(p)
	if err != nil {
		return nil, err
	}
	data, err := parseData(p.Data)
	if err != nil {
		return nil, err
	}
	out := &Program{name: p.Name, version: p.Version, digest: digest(p)}
	whole, err := ast.InterfaceToValue(data)
	if err != nil {
		return nil, Errors{{File: "data", Message: err.Error()}}
	}
	out.data = baseDocument{whole}
	out.store = inmem.NewFromASTObject(whole.(ast.Object)) // a JSON object becomes nothing else
	if out.txn, err = out.store.NewTransaction(ctx); err != nil {
		return nil, mistake("open the data: %v", err)
	}
	for _, m := range modules {
		out.asksRequest = out.asksRequest || asksRequest(m)
	}
	out.compiler = ast.NewCompiler().
		WithCapabilities(Capabilities(v0)).
		WithDefaultRegoVersion(regoVersion(v0)).
		WithSchemas(inputSchema()).
		WithPathConflictsCheck(storage.NonEmpty(ctx, out.store, out.txn))
	if out.compiler.Compile(modules); out.compiler.Failed() {
		return nil, ordered(fromOPA(out.compiler.Errors))
	}
	if !decides(out.compiler, ref, data) {
		return nil, mistake("no rule answers the query %s: every decision would be a denial; name the package and rule that decide, or write one (package legation, rule allow)", ref)
	}
	if t := out.compiler.TypeEnv.GetByRef(ref); !mayBeBoolean(t) {
		return nil, mistake("the query %s answers %s, never true: every decision would be a denial", ref, types.Sprint(t))
	}
	const answer = ast.Var("answer")
	query := ast.NewBody(ast.Equality.Expr(ast.NewTerm(answer), ast.NewTerm(ref)))
	if out.body, err = out.compiler.QueryCompiler().Compile(query); err != nil {
		return nil, mistake("compile the query %s: %v", ref, err)
	}
	out.answer = answer
	return out, nil
}

// asksRequest reports whether a module reads input.request, or input as a
// whole; a document that it cannot read need not be built.
func asksRequest(m *ast.Module) (asks bool) {
	ast.WalkRefs(m, func(r ast.Ref) bool {
		if r.HasPrefix(ast.InputRootRef) {
			if len(r) == 1 {
				asks = true
			} else if field, ok := r[1].Value.(ast.String); !ok || field == "request" {
				asks = true
			}
		}
		return asks
	})
	return asks || importsInput(m)
}

func importsInput(m *ast.Module) bool {
	for _, i := range m.Imports {
		if ref, ok := i.Path.Value.(ast.Ref); ok && ref.HasPrefix(ast.InputRootRef) {
			return true
		}
	}
	return false
}

// decides reports whether anything stands where the query looks.
func decides(c *ast.Compiler, ref ast.Ref, data map[string]any) bool {
	if len(c.GetRulesForVirtualDocument(ref)) > 0 || len(c.GetRulesExact(ref)) > 0 {
		return true
	}
	var node any = data
	for _, t := range ref[1:] {
		m, ok := node.(map[string]any)
		if !ok {
			return false
		}
		if node, ok = m[string(t.Value.(ast.String))]; !ok {
			return false
		}
	}
	return true
}

// mayBeBoolean reports whether a value of the type can be true.
func mayBeBoolean(t types.Type) bool {
	switch t := t.(type) {
	case nil, types.Boolean:
		return true
	case types.Any:
		return len(t) == 0 || slices.ContainsFunc(t, mayBeBoolean)
	}
	return false
}

func checkBounds(p Policy) (ast.Ref, error) {
	ref, err := parseQuery(p.Query)
	if err != nil {
		return nil, mistake("%v", err)
	}
	if len(p.Modules) > MaxModules {
		return nil, mistake("%d modules; a policy has at most %d", len(p.Modules), MaxModules)
	}
	if len(p.Modules) == 0 {
		return nil, mistake("the policy has no modules: every decision would be a denial")
	}
	var wrong Errors
	total := len(p.Data)
	for _, file := range fileNames(p) {
		source := p.Modules[file]
		total += len(source)
		switch {
		case file == "" || len(file) > maxNameBytes:
			wrong = append(wrong, mistake("a module's name has %d bytes; use 1 to %d", len(file), maxNameBytes)...)
		case len(source) > MaxModuleBytes:
			wrong = append(wrong, &Error{File: file, Message: fmt.Sprintf("%d bytes; a module has at most %d", len(source), MaxModuleBytes)})
		case !utf8.ValidString(source):
			wrong = append(wrong, &Error{File: file, Message: "not UTF-8"})
		default:
			if line, what := tooDeep(source); what != "" {
				wrong = append(wrong, &Error{File: file, Line: line, Column: 1, Message: what})
			}
		}
	}
	if total > MaxBytes {
		wrong = append(wrong, mistake("%d bytes of modules and data; a policy has at most %d", total, MaxBytes)...)
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	return ref, nil
}

func fileNames(p Policy) []string { return slices.Sorted(maps.Keys(p.Modules)) }

// parseAll parses every module and checks what the compiler does not. v0 says
// whether any is of the old language, whose deprecated built-ins then exist.
func parseAll(p Policy) (modules map[string]*ast.Module, v0 bool, err error) {
	modules = make(map[string]*ast.Module, len(p.Modules))
	var wrong Errors
	for _, file := range fileNames(p) {
		old := p.RegoV0
		if o, ok := p.ModuleRegoV0[file]; ok {
			old = o
		}
		v0 = v0 || old
		m, err := ast.ParseModuleWithOpts(file, p.Modules[file], ast.ParserOptions{
			Capabilities: Capabilities(old), RegoVersion: regoVersion(old)})
		if err != nil {
			wrong = append(wrong, fromOPA(err)...)
			continue
		}
		if m == nil {
			wrong = append(wrong, &Error{File: file, Message: "the module is empty"})
			continue
		}
		modules[file] = m
		wrong = append(wrong, forbidden(m)...)
	}
	if len(wrong) > 0 {
		return nil, v0, ordered(wrong)
	}
	if wrong := complexity(modules, fileNames(p)); len(wrong) > 0 {
		return nil, v0, ordered(wrong)
	}
	return modules, v0, nil
}

func ordered(e Errors) Errors {
	slices.SortStableFunc(e, func(a, b *Error) int {
		if c := strings.Compare(a.File, b.File); c != 0 {
			return c
		}
		return a.Line - b.Line
	})
	const most = 20
	if len(e) > most {
		more := len(e) - most
		e = append(e[:most:most], &Error{Message: fmt.Sprintf("and %d more", more)})
	}
	return e
}

func parseData(raw []byte) (map[string]any, error) {
	if len(bytes.TrimSpace(raw)) == 0 {
		return map[string]any{}, nil
	}
	if line, what := tooDeep(string(raw)); what != "" {
		return nil, Errors{{File: "data", Line: line, Column: 1, Message: what}}
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var data map[string]any
	if err := d.Decode(&data); err != nil {
		return nil, Errors{{File: "data", Line: 1 + bytes.Count(raw[:min(int(d.InputOffset()), len(raw))], []byte("\n")), Column: 1, Message: fmt.Sprintf("not a JSON object: %v", err)}}
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, Errors{{File: "data", Message: "something follows the JSON object"}}
	}
	if data == nil {
		return map[string]any{}, nil
	}
	return data, nil
}

// tooDeep bounds brackets within brackets, which parsers and compilers
// follow by recursion; a stack that overflows ends the process. Strings and
// comments are skipped as Rego and JSON read them.
func tooDeep(source string) (line int, what string) {
	depth := 0
	line = 1
	for i := 0; i < len(source); i++ {
		switch c := source[i]; c {
		case '\n':
			line++
		case '(', '[', '{':
			if depth++; depth > maxNesting {
				return line, fmt.Sprintf("brackets are nested more than %d deep", maxNesting)
			}
		case ')', ']', '}':
			depth--
		case '#':
			for i+1 < len(source) && source[i+1] != '\n' {
				i++
			}
		case '"':
			for i++; i < len(source) && source[i] != '"' && source[i] != '\n'; i++ {
				if source[i] == '\\' {
					i++
				}
			}
			if i < len(source) && source[i] == '\n' {
				line++
			}
		case '`':
			for i++; i < len(source) && source[i] != '`'; i++ {
				if source[i] == '\n' {
					line++
				}
			}
		}
	}
	return 0, ""
}

// digest tells equal policies from changed ones.
func digest(p Policy) [sha256.Size]byte {
	h := sha256.New()
	put := func(s string) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		io.WriteString(h, s)
	}
	put(p.Name)
	put(p.Version)
	put(p.Query)
	put(string(p.Data))
	put(fmt.Sprint(p.RegoV0))
	for _, file := range fileNames(p) {
		put(file)
		put(p.Modules[file])
		old, said := p.ModuleRegoV0[file]
		put(fmt.Sprint(old, said))
	}
	return [sha256.Size]byte(h.Sum(nil))
}
