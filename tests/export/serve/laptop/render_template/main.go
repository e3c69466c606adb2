package main

import (
	"encoding/json"
	"os"
	"text/template"
)

type Arguments map[string]any

func (a Arguments) String() string { b, _ := json.Marshal(map[string]any(a)); return string(b) }

type Function struct {
	Name      string    `json:"name"`
	Arguments Arguments `json:"arguments"`
}
type Call struct {
	Function Function `json:"function"`
}
type Message struct {
	Role, Content, Thinking, ToolName string
	ToolCalls                         []Call
}
type Property struct {
	Type        []string
	Description string
	Enum        []any
}
type Parameters struct {
	Required   []string
	Properties map[string]Property
}
type Declared struct {
	Name, Description string
	Parameters        Parameters
}
type Tool struct{ Function Declared }
type Values struct {
	System, ThinkLevel string
	Messages           []*Message
	Tools              []Tool
}

func main() {
	text, _ := os.ReadFile(os.Args[1])
	functions := template.FuncMap{"currentDate": func() string { return os.Args[2] }}
	parsed, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(string(text))
	if err != nil {
		panic(err)
	}
	var v Values
	if err := json.NewDecoder(os.Stdin).Decode(&v); err != nil {
		panic(err)
	}
	if err := parsed.Execute(os.Stdout, v); err != nil {
		panic(err)
	}
}
