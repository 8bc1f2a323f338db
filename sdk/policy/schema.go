package policy

import (
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
)

// inputSchema is the input document for the type checker: a field that does
// not exist is an error with a line, not a denial that nobody understands.
var inputSchema = sync.OnceValue(func() *ast.SchemaSet {
	text := map[string]any{"type": "string"}
	object := func(fields map[string]any) map[string]any {
		return map[string]any{"type": "object", "properties": fields, "additionalProperties": false}
	}
	set := ast.NewSchemaSet()
	set.Put(ast.SchemaRootRef, object(map[string]any{
		"identity": object(map[string]any{"spiffe_id": text, "trust_domain": text, "path": text,
			"namespace": text, "service_account": text}),
		"operation": text,
		"resource": object(map[string]any{"type": text, "name": text,
			"params": map[string]any{"type": "object", "additionalProperties": text}}),
		"request": object(map[string]any{"method": text, "path": text,
			"headers": map[string]any{"type": "object", "additionalProperties": map[string]any{"type": "array", "items": text}}}),
	}))
	return set
})
