//! Whether new descriptors keep every promise of published ones.
//!
//! A node and a control service one minor version apart must keep working, so what was published
//! stays: every message, field, enum value and method under its name, number and type. Adding is
//! fine. Only Weft's own packages are compared; the imports follow their own rules.

use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, MethodDescriptorProto,
    ServiceDescriptorProto, field_descriptor_proto::Label, field_descriptor_proto::Type,
};
use std::collections::BTreeMap;

/// What users of `published` would lose with `current`: one line each, empty when nothing.
pub fn breaking_changes(published: &FileDescriptorSet, current: &FileDescriptorSet) -> Vec<String> {
    let (old, new) = (Index::new(published), Index::new(current));
    let mut lost = Vec::new();
    for (name, message) in &old.messages {
        match new.messages.get(name) {
            Some(now) => compare_fields(name, message, now, &mut lost),
            None => lost.push(format!("message {name} is gone")),
        }
    }
    for (name, values) in &old.enums {
        match new.enums.get(name) {
            Some(now) => compare_values(name, values, now, &mut lost),
            None => lost.push(format!("enum {name} is gone")),
        }
    }
    for (name, service) in &old.services {
        match new.services.get(name) {
            Some(now) => compare_methods(name, service, now, &mut lost),
            None => lost.push(format!("service {name} is gone")),
        }
    }
    lost
}

/// The definitions of Weft's packages by full name.
#[derive(Default)]
struct Index<'a> {
    messages: BTreeMap<String, &'a DescriptorProto>,
    enums: BTreeMap<String, &'a EnumDescriptorProto>,
    services: BTreeMap<String, &'a ServiceDescriptorProto>,
}

impl<'a> Index<'a> {
    fn new(set: &'a FileDescriptorSet) -> Self {
        let mut index = Self::default();
        for file in set.file.iter().filter(|f| f.package().starts_with("weft.")) {
            let package = file.package();
            for message in &file.message_type {
                index.message(package, message);
            }
            for one in &file.enum_type {
                index.enums.insert(format!("{package}.{}", one.name()), one);
            }
            for service in &file.service {
                index
                    .services
                    .insert(format!("{package}.{}", service.name()), service);
            }
        }
        index
    }

    fn message(&mut self, scope: &str, message: &'a DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        for nested in &message.nested_type {
            self.message(&name, nested);
        }
        for one in &message.enum_type {
            self.enums.insert(format!("{name}.{}", one.name()), one);
        }
        self.messages.insert(name, message);
    }
}

fn compare_fields(name: &str, old: &DescriptorProto, new: &DescriptorProto, lost: &mut Vec<String>) {
    for field in &old.field {
        let number = field.number();
        let Some(now) = new.field.iter().find(|f| f.number() == number) else {
            lost.push(format!("field {name}.{} = {number} is gone", field.name()));
            continue;
        };
        if field.name() != now.name() {
            lost.push(format!(
                "field {name}.{} = {number} is now called {}",
                field.name(),
                now.name()
            ));
        }
        let (was, is) = (kind(old, field), kind(new, now));
        if was != is {
            lost.push(format!(
                "field {name}.{} = {number} was `{was}` and is now `{is}`",
                field.name()
            ));
        }
    }
}

/// All that decides how a field is written and read, in the words of a `.proto` file.
fn kind(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let mut words = Vec::new();
    if field.label() == Label::Repeated {
        words.push("repeated".to_owned());
    } else if field.proto3_optional() {
        words.push("optional".to_owned());
    } else if let Some(group) = field
        .oneof_index
        .and_then(|i| message.oneof_decl.get(usize::try_from(i).ok()?))
    {
        words.push(format!("oneof {}", group.name()));
    }
    words.push(match field.r#type() {
        Type::Message | Type::Enum | Type::Group => field.type_name().trim_start_matches('.').to_owned(),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    });
    words.join(" ")
}

fn compare_values(name: &str, old: &EnumDescriptorProto, new: &EnumDescriptorProto, lost: &mut Vec<String>) {
    for value in &old.value {
        let number = value.number();
        match new.value.iter().find(|v| v.number() == number) {
            None => lost.push(format!("enum value {name}.{} = {number} is gone", value.name())),
            Some(now) if now.name() != value.name() => lost.push(format!(
                "enum value {name}.{} = {number} is now called {}",
                value.name(),
                now.name()
            )),
            Some(_) => {}
        }
    }
}

fn compare_methods(
    name: &str,
    old: &ServiceDescriptorProto,
    new: &ServiceDescriptorProto,
    lost: &mut Vec<String>,
) {
    for method in &old.method {
        match new.method.iter().find(|m| m.name() == method.name()) {
            None => lost.push(format!("method {name}.{} is gone", method.name())),
            Some(now) => {
                let (was, is) = (signature(method), signature(now));
                if was != is {
                    lost.push(format!(
                        "method {name}.{} was `{was}` and is now `{is}`",
                        method.name()
                    ));
                }
            }
        }
    }
}

fn signature(method: &MethodDescriptorProto) -> String {
    let side = |stream: bool, name: &str| {
        let stream = if stream { "stream " } else { "" };
        format!("({stream}{})", name.trim_start_matches('.'))
    };
    format!(
        "{} returns {}",
        side(method.client_streaming(), method.input_type()),
        side(method.server_streaming(), method.output_type())
    )
}
