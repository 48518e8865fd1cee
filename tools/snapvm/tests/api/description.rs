//! `openapi.json` as the judge of real answers.

use serde_json::{Value, json};

/// The OpenAPI description of the control API.
pub struct Description(Value);

impl Description {
    pub fn load() -> Self {
        Self(serde_json::from_str(include_str!("../../openapi.json")).unwrap())
    }

    pub fn document(&self) -> Value {
        self.0.clone()
    }

    /// All paths.
    pub fn paths(&self) -> Vec<String> {
        self.0["paths"].as_object().unwrap().keys().cloned().collect()
    }

    /// Whether a path takes a method.
    pub fn has(&self, method: &str, path: &str) -> bool {
        self.0["paths"][path].get(method.to_lowercase()).is_some()
    }

    /// All methods, paths and status codes that are described.
    pub fn answers(&self) -> Vec<(String, String, u16)> {
        let mut answers = Vec::new();
        for (path, methods) in self.0["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                for status in operation["responses"].as_object().unwrap().keys() {
                    answers.push((method.to_uppercase(), path.clone(), status.parse().unwrap()));
                }
            }
        }
        answers
    }

    /// Insists that an answer is as described.
    #[track_caller]
    pub fn check(&self, method: &str, path: &str, status: u16, answer: &Value) {
        let operation = &self.0["paths"][path][method.to_lowercase()];
        let response = &operation["responses"][status.to_string()];
        assert!(
            response.is_object(),
            "{method} {path}: status {status} is not described: {answer}"
        );
        self.validate(&response["content"]["application/json"]["schema"], answer);
    }

    /// Insists that an answer is an error as described.
    #[track_caller]
    pub fn check_error(&self, answer: &Value) {
        self.validate(&json!({"$ref": "#/components/schemas/Error"}), answer);
    }

    #[track_caller]
    fn validate(&self, schema: &Value, answer: &Value) {
        let mut schema = schema.clone();
        schema["components"] = self.0["components"].clone();
        let validator = jsonschema::draft202012::new(&schema).expect("the schema is one");
        let errors: Vec<_> = validator
            .iter_errors(answer)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{errors:#?}\nin {answer:#}");
    }
}
